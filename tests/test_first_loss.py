"""A training begins with the loss of the class share, whatever the family of the backbone."""

import math
import warnings

import pandas as pd
import pytest
import torch

from osteo.config import LossConfig
from osteo.training import fit
from osteo.training.losses import log_odds
from osteo.training.module import Classifier

SHARE = 0.3
LOSS = -(SHARE * math.log(SHARE) + (1 - SHARE) * math.log(1 - SHARE))
SIDES = {
    "crossvit_9_240": 240, "efficientformer_l1": 224, "inception_resnet_v2": 96, "inception_v3": 96,
    "inception_v4": 96,
}  # fmt: skip
"""Of the backbones that take no pictures of 32 x 32."""
FAMILIES = """
beit_base_patch16_224 gernet_s cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto cpubone_nano
crossvit_9_240 cs3darknet_focus_s cspnext_s davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla46_c dpn48b
edgenext_small efficientformer_l1 efficientformerv2_s0 tf_efficientnet_lite0 efficientvim_m1 efficientvit_b0
efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a
hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_s inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_base levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224
fbnetv3_b mobilevit_s mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny
regnetx_002 repghostnet_050 repvit_m0_9 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42
legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_s swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos vitamin_small_224 volo_d1_224 ese_vovnet19b_dw
legacy_xception xception41p xcit_nano_12_p8_224 torchvision/alexnet torchvision/googlenet
""".split()  # noqa: SIM905
"""The smallest backbone of each of timm's modules, but for six that take longer than all others together."""


def first_loss(module: Classifier, share: float, side: int) -> float:
    """The loss of a training batch with this share of osteoporosis."""
    labels = (torch.arange(10) < 10 * share).float()
    pictures = torch.rand(10, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(module.loss(module.train()(pictures), labels).mean())


FEW = ("convnext_atto", "ghostnet_050", "levit_128s", "resnet10t", "starnet_s1", "test_vit", "torchvision/alexnet")


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in FAMILIES]
)
def test_the_first_loss_is_that_of_the_class_share(backbone: str) -> None:
    side = SIDES.get(backbone, 64 if backbone.startswith("torchvision") else 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Classifier(backbone, image_size=side)
    fit.begin_at_share(module, LossConfig(), manifest_of(SHARE))
    assert first_loss(module, SHARE, side) == pytest.approx(LOSS, abs=0.02)


def manifest_of(share: float) -> pd.DataFrame:
    return pd.DataFrame({"split": ["train"] * 10 + ["test"], "label": [int(n < 10 * share) for n in range(10)] + [1]})


def test_class_weights_and_smoothing_count() -> None:
    assert log_odds([0, 0, 0, 1]) == pytest.approx(math.log(1 / 3))
    assert log_odds([0, 0, 0, 1], weights=(4 / 6, 2.0)) == pytest.approx(0.0)
    assert log_odds([0, 0, 0, 1], share=0.2) == pytest.approx(math.log(0.3 / 0.7))  # 0.25 x 0.8 + 0.1
    module = Classifier("test_resnet", image_size=32, loss={"label_smoothing": 0.2})
    fit.begin_at_share(module, LossConfig(class_weights="balanced", label_smoothing=0.2), manifest_of(0.3))
    assert module(torch.rand(2, 1, 32, 32)).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
