"""Methods: networks, losses and diffusion maths."""
