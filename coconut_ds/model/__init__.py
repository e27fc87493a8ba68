"""The backbone, its thought markers and the latent loop."""
