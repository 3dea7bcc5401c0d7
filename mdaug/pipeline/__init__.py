"""The diffusers pipeline, its schedulers and its folders."""
