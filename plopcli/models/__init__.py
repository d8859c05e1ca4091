"""Networks: backbone, DeepLab head, one classifier per step."""
