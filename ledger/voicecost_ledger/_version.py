"""The one version of the distribution `livekit-plugins-voicecost`."""

__version__ = "0.1.0"
