"""Names of backbones and heads, and what is wrong with them; no network is built, and no library loaded, for it."""

from osteo import libraries, parts
from osteo.errors import UserError, unknown

PLAIN = "plain_cnn"
LEAST = {"gru": 1, "stacked": 1, "fused": 2, "attended": 2}
"""What the name of a composite begins with, and of how many backbones at least it is made."""
LINEAR, STANDARDISED = "linear", "standardised"
"""The head that is the backbone's own last layer; and one that takes each feature's mean and spread away before."""


def bases_of(name: str) -> list[str]:
    """The backbones that a composite of this name is made of; none where it is no composite."""
    kind, _, bases = name.partition("/")
    return bases.split("+") if kind in LEAST else []


def known_backbones(name: str = "") -> list[str]:
    """All names; those with a tag of weights, such as resnet50.a1_in1k, only where `name` has one."""
    if name.startswith(libraries.TORCHVISION):
        return list(libraries.known("torchvision"))
    of_timm = libraries.known("tagged_backbones" if "." in name else "backbones")
    return [*parts.backbones, PLAIN, *of_timm]


def check_backbone_name(name: str) -> None:
    """Refuses a backbone that nobody knows, and a composite of such ones or of too few.

    Raises:
        UserError: one line with the nearest names.
    """
    bases = bases_of(name)
    if not bases and name not in known_backbones(name):
        raise unknown("model.backbone", name, known_backbones(name))
    if bases and (len(bases) < (least := LEAST[name.partition("/")[0]]) or "" in bases):
        example = f"{name.partition('/')[0]}/{'+'.join(['resnet50', 'densenet121'][:least])}"
        raise UserError(f"model.backbone={name} names too few backbones; as in model.backbone={example}")
    for base in bases:
        if bases_of(base):
            check_backbone_name(base)
        elif base not in known_backbones(base):
            raise unknown(f"model.backbone={name}: backbone", base, known_backbones(base))


def check_head_name(name: str) -> None:
    """Refuses a head that neither osteo nor a plugin has.

    Raises:
        UserError: one line with the names.
    """
    if name not in (heads := (LINEAR, STANDARDISED, *parts.heads)):
        raise unknown("model.head", name, heads)
