"""The sections of the GPU check (``gpu_check.py``), and what runs and reports them."""
