"""A patient's characteristics beside the picture, joined by late fusion."""

import torch
from torch import Tensor, nn

from osteo.reading.covariates import Covariates, as_number


class LateFusion(nn.Module):
    """What covariates add to a network's outputs.

    A linear classifier of pooled features with covariates concatenated to them (late fusion) is the sum of one of the
    features and one of the covariates; this is the second. So every backbone, tile and view does as it did without,
    and features that are kept stay as they are.

    Args:
        covariates: what has been learnt of them in training.
        outputs: 1, or as many as a nominal task has classes.
    """

    def __init__(self, covariates: Covariates, outputs: int) -> None:
        super().__init__()
        self.covariates = covariates
        self.weight = nn.Parameter(torch.zeros(outputs, len(covariates.feature_names)))
        self.register_buffer("_of_unknown", torch.from_numpy(covariates.of_patient({})), persistent=False)

    def forward(self, outputs: Tensor, features: Tensor | None) -> Tensor:
        """The outputs for a picture and its patient.

        Args:
            outputs: for the picture, float (B,) or (B, K).
            features: of `Covariates.features`, float (B, F); None for patients of whom nothing is known.
        """
        if features is None:
            features = self._of_unknown.expand(len(outputs), -1)  # type: ignore[operator]
        beyond = (features[:, None] * self.weight).sum(2)  # in float32, whatever the precision of products
        return outputs + (beyond.squeeze(1) if outputs.ndim == 1 else beyond)


class Scaling(nn.Module):
    """`Covariates.features` for an exported file: covariates as they are become features inside it.

    Args:
        covariates: what has been learnt of them in training.
    """

    def __init__(self, covariates: Covariates) -> None:
        super().__init__()
        names = covariates.names
        of_missing = [as_number(name, covariates.fills[name]) for name in names]
        for name, values in (
            ("fills", of_missing),
            ("means", [covariates.means.get(name, 0.0) for name in names]),
            ("deviations", [covariates.deviations.get(name, 1.0) for name in names]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.flagged = [names.index(name) for name in covariates.flagged]

    def forward(self, values: Tensor) -> Tensor:
        """Maps float32 (N, C), NaN where a value is not known, to features (N, F)."""
        missing = torch.isnan(values)
        filled = torch.where(missing, self.fills, values)  # type: ignore[arg-type]
        scaled = (filled - self.means) / self.deviations  # type: ignore[operator]
        return torch.cat([scaled, missing[:, self.flagged].to(scaled.dtype)], dim=1)
