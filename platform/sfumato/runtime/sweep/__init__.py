"""`sfumato tune`: a sweep on Ray Tune, in which every trial is a run like those of `sfumato train`."""
