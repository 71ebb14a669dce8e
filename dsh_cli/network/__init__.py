"""Networks: pictures as bytes to relaxed codes. Torch is imported here and in `training` alone."""
