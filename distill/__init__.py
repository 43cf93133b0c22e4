"""distill: knowledge distillation of Segment Anything into small promptable models."""

__version__ = "0.1.0"
