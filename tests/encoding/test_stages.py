"""What an encoder can be, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from encoding.encoders import fit, sizes
from wherefrom.encoding.factory import make_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import WherefromError


@pytest.mark.parametrize(
    ("stages", "dimension", "size", "line"),
    [
        (Stages("sketch", 16384, 1), 16384, 2048, "sketch 16384, rotated, 1 bit"),
        (
            Stages("sketch", 32768, 1, sketched=65536),
            32768,
            4096,
            "sketch 32768 of 65536, rotated, 1 bit",
        ),
        (Stages("energy", 1001, 4, rotate=False), 1001, 501, "energy 1001, 4 bits"),
        (Stages("random", 4096, 16, rotate=False), 4096, 8192, "random 4096, fp16"),
        (Stages("none", 720, 32, pca=9), 9, 36, "none 720, pca 9, rotated, fp32"),
        (Stages("sketch", 7, 2), 7, 2, "sketch 7, rotated, 2 bits"),
    ],
)
def test_stages_know_their_size_and_say_what_they_are(
    stages: Stages, dimension: int, size: int, line: str
) -> None:
    assert (stages.dimension, stages.code_bytes, stages.describe()) == (dimension, size, line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduce": "srp"}, "'srp' is unknown; choose one of 'sketch', 'energy', 'random', 'none'"),
        ({"bits": 3}, "3 bits an entry are not possible; choose 1, 2, 4, 8, 16, 32"),
        ({"reduced": 0}, "needs at least 1 dimension, not 0"),
        ({"reduce": "energy", "sketched": 60}, "sketched=60 belongs to a sketch, not to 'energy'"),
        ({"sketched": 50}, "sketched=50 is not possible; give more than 50"),
        ({"sketched": -1}, "sketched=-1 is not possible"),
        ({"pca": 51}, "pca=51 is not possible; give 1 to 50"),
        ({"pca": 0}, "pca=0 is not possible; give 1 to 50"),
    ],
)
def test_stages_that_cannot_be_are_refused_in_one_line(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(WherefromError, match=message) as caught:
        replace(Stages("sketch", 50, 4), **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["identity", "datainf", "datainf-scanned", "lissa"])
@pytest.mark.parametrize("stages", [Stages("energy", 50, 4), Stages("sketch", 50, 4, sketched=60)])
def test_energies_that_are_not_known_are_not_made_up(kind: str, stages: Stages) -> None:
    fitted = fit("mlp-bias", kind)
    with pytest.raises(WherefromError, match=f"'{fitted.kind}' knows no eigenvalues of layer '0'"):
        make_encoder(fitted, stages)
    assert make_encoder(fitted, replace(stages, reduce="sketch", sketched=None)).dimension == 50


def test_more_than_there_is_is_refused() -> None:
    fitted = fit("mlp-bias")
    total = sum(sizes(fitted))
    for reduce in ("energy", "random"):
        assert make_encoder(fitted, Stages(reduce, total, 4)).dimension == total
        with pytest.raises(WherefromError, match=f"cannot make {total + 1} of {total} coord"):
            make_encoder(fitted, Stages(reduce, total + 1, 4))
    with pytest.raises(WherefromError, match=f"keeps all {total} coordinates, not 50"):
        make_encoder(fitted, Stages("none", 50, 32))
    with pytest.raises(WherefromError, match=f"{total + 1} coordinates cannot be chosen"):
        make_encoder(fitted, Stages("sketch", 50, 4, sketched=total + 1))
    with pytest.raises(WherefromError, match=r"shape \(50, 3\), the encoder's stages need None"):
        make_encoder(fitted, Stages("sketch", 50, 4), torch.eye(50)[:, :3])
