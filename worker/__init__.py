"""What runs inside the image: one shard of a run. Knows neither AWS Batch's API nor GitHub."""

__version__ = "0.1.0"
