"""Between noise and image: levels, paths, and the equations that objectives and samplers share."""
