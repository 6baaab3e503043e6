"""HTSAT, a Swin transformer over a folded log-mel spectrogram, hosted on transformers' ClapAudioModel.

Source: Chen et al., "HTS-AT: A hierarchical token-semantic audio transformer" (2022), in the form of WavCaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.pretrained import build_config
from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.fbank import decibels, mel_spectrogram

KEY = "model.init_args.audio_text.wavcaps"
"""Where a configuration holds the settings, for messages."""


@dataclass
class HTSATSettings:
    """Front end and size; the defaults are HTSAT-tiny as WavCaps trained it.

    Args:
        sample_rate_hz: of the sound.
        window_s: seconds heard at once; shorter sound is followed by zeros.
        fft_size: samples of a frame.
        hop_length: samples between frames.
        num_mel_bins: F.
        low_hz: lower edge of the lowest filter.
        high_hz: upper edge of the highest filter.
        config: keys of transformers' ClapAudioConfig, such as `depths`; the rest has its defaults.
    """

    sample_rate_hz: int = 32_000
    window_s: float = 10.0
    fft_size: int = 1024
    hop_length: int = 320
    num_mel_bins: int = 64
    low_hz: float = 50.0
    high_hz: float = 14_000.0
    config: dict[str, Any] = field(default_factory=dict)


class HTSAT(nn.Module):
    """Waveform in, one vector out.

    Args:
        settings: see `HTSATSettings`.

    Raises:
        ConfigError: keys that ClapAudioConfig refuses, or a window with more frames than the picture has room for.
    """

    def __init__(self, settings: HTSATSettings) -> None:
        super().__init__()
        from transformers import ClapAudioModel

        self.settings = settings
        self.model = ClapAudioModel(audio_config(settings.num_mel_bins, settings.config, f"{KEY}.audio.config"))
        self.embed_dim: int = self.model.config.hidden_size
        self.window_samples = round(settings.window_s * settings.sample_rate_hz)
        frames = 1 + self.window_samples // settings.hop_length
        room = self.model.config.spec_size**2 // settings.num_mel_bins
        if not 1 <= frames <= room:
            raise ConfigError(
                f"{KEY}.audio: window_s {settings.window_s:g} gives {frames} frames, spec_size "
                f"{self.model.config.spec_size} has room for 1 to {room}"
            )

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, T, F) float32 decibels of (B, S) waveforms, whatever their length."""
        settings = self.settings
        return decibels(
            mel_spectrogram(
                waveform,
                sample_rate_hz=settings.sample_rate_hz,
                fft_size=settings.fft_size,
                hop_length=settings.hop_length,
                num_mel_bins=settings.num_mel_bins,
                low_hz=settings.low_hz,
                high_hz=settings.high_hz,
                mel_scale="slaney",
                area_normalised=True,
            )
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode windows.

        Args:
            waveform: (B, S) in [-1, 1], at most `window_samples`; zeros are added up to there.

        Returns:
            (B, C) mean of the last layer's tokens.

        Raises:
            ShapeError: waveform is not 2-D, or longer than the window.
        """
        if waveform.ndim != 2 or waveform.shape[1] > self.window_samples:
            raise ShapeError(
                f"waveform is {tuple(waveform.shape)}, wanted (clips, at most {self.window_samples} samples)"
            )
        filled = F.pad(waveform.float(), (0, self.window_samples - waveform.shape[1]))
        spectrogram = self.log_mel(filled)[:, None].to(self.model.dtype)
        pooled: Tensor = self.model(input_features=spectrogram).pooler_output
        return pooled


def audio_config(num_mel_bins: int, keys: dict[str, Any], key: str) -> Any:
    """A ClapAudioConfig of transformers, the width of whose last layer follows from that of the first.

    Args:
        num_mel_bins: F.
        keys: of ClapAudioConfig.
        key: config key that they stand under, for the message.

    Raises:
        ConfigError: unknown keys, or values that do not fit.
    """
    from transformers import ClapAudioConfig

    config = build_config(ClapAudioConfig, {**keys, "num_mel_bins": num_mel_bins}, key)
    if len(config.depths) != len(config.num_attention_heads):
        raise ConfigError(
            f"{key}: depths has {len(config.depths)} entries, num_attention_heads {len(config.num_attention_heads)}"
        )
    config.hidden_size = config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)
    if config.spec_size % num_mel_bins:
        raise ConfigError(f"{key}: spec_size {config.spec_size} is no multiple of num_mel_bins {num_mel_bins}")
    return config
