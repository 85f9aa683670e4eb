"""What objectives of few steps share: a teacher, steps between noise levels, derivatives along a path."""
