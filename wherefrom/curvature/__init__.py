"""Pure tensor maths: pseudo-gradients -> an immutable fitted curvature that whitens."""
