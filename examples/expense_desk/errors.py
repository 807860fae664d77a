"""What can go wrong before the demo starts, each with what to do next."""

from __future__ import annotations

ELSE = "Or run without it: `reflect demo --model provider:name` (a provider's model) or `reflect demo --scripted`."


class DemoError(RuntimeError):
    """The demo cannot run; the message says why and what to do."""


class NoRuntimeError(DemoError, ImportError):
    """The local model's runtime is not installed, or has no wheel for this platform."""


class NoPipError(DemoError):
    """This Python has no pip to download the model with."""


class DownloadError(DemoError, OSError):
    """A part of the model could not be downloaded."""


class DiskSpaceError(DemoError, OSError):
    """The cache folder has too little room for the model."""


class ChecksumError(DemoError, ValueError):
    """The model file is not the one that this demo was measured with."""


class BusyError(DemoError, OSError):
    """Another process is downloading the model now."""


class ServerError(DemoError):
    """The local model's server did not start."""


class UsedFolderError(DemoError, FileExistsError):
    """The output folder holds an earlier run, whose lessons would be a head start."""


class ProviderError(DemoError):
    """The named provider's model cannot be built."""
