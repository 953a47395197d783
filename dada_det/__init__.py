"""Search an augmentation policy, pretrain a backbone with it, put it into MMDetection's detectors."""

__version__ = "0.1.0"
