"""Models with mixtures as files of other runtimes, compared with the model before they count."""

from plait.export.export import FORMATS, export

__all__ = ["FORMATS", "export"]
