"""Which of diffusers' pipelines a model becomes, and what that one cannot do with it."""

import dataclasses

import pytest
from golden_cases import GOLDEN
from tiny_pipeline import PIPELINES

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.pipelines import limits, pipeline_family
from pixart_jax.conversion.sources import open_source
from pixart_jax.errors import InputError


def test_the_pipelines_class():
    """By micro-conditions, else by what the user says, how captions are cleaned, or their length."""
    sigma = describe(open_source(GOLDEN / "sigma_plain.pth"), Hints(num_heads=2, family="sigma"))
    alpha = dataclasses.replace(sigma, caption_cleaning="alpha")
    assert [pipeline_family(sigma), pipeline_family(alpha)] == ["sigma", "alpha"]
    assert pipeline_family(alpha, "sigma") == "sigma"
    run = dataclasses.replace(sigma, caption_cleaning="none")
    for tokens, family in ((300, "sigma"), (120, "alpha")):
        assert pipeline_family(dataclasses.replace(run, model=run.model.clone(max_text_tokens=tokens))) == family
    assert pipeline_family(run, "alpha") == "alpha"
    with pytest.raises(InputError, match="pass --family alpha or --family sigma"):
        pipeline_family(run)
    micro = dataclasses.replace(sigma, model=sigma.model.clone(micro_condition=True))
    assert pipeline_family(micro) == "alpha"
    with pytest.raises(InputError, match="PixArtSigmaPipeline passes no micro-conditions"):
        pipeline_family(micro, "sigma")
    # 128 / patch size 2 tokens along a side.
    (line,) = limits(micro, [], "alpha")
    assert "has 8, so it cannot" in line
    (line,) = limits(sigma, [], "sigma")
    assert "PixArtSigmaPipeline knows no aspect ratios for a sample_size of 8" in line
    for model, family in ((micro, "alpha"), (sigma, "alpha"), (sigma, "sigma")):
        assert not limits(dataclasses.replace(model, position_base=64), [], family)
    assert [len(limits(dataclasses.replace(sigma, position_base=128), [], family)) for family in PIPELINES] == [1, 0]
