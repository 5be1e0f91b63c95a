"""The terms of the pages, each explained once: at the end of every page, and in the documentation."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup, escape


class Term(NamedTuple):
    """A term and what it means."""

    title: str
    meaning: str

    @property
    def anchor(self) -> str:
        """Where the term stands on a page, as in #term-decision-curve."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


GLOSSARY = {
    name: Term(*entry)
    for name, entry in {
        "accuracy": ("Accuracy", "The share of pictures that are called correctly. Where one class is more frequent, a"
                     " model that always calls that class already has a high accuracy."),
        "auroc": ("AUROC", "Area under the ROC curve: the probability that a picture with the disease, drawn at random,"
                  " gets a higher score than one without. 0.5 is chance, 1.0 is perfect. It needs no threshold."),
        "average_precision": ("Average precision", "A summary of the precision-recall curve. Chance reaches the share"
                              " of cases, so values from data with different shares cannot be compared."),
        "backbone": ("Backbone", "The part of a network that turns a picture into features, such as resnet50; a small"
                     " classifier on top turns the features into a probability."),
        "balanced_accuracy": ("Balanced accuracy", "The mean, over the classes, of the share of each class that is"
                              " called correctly. Always calling one class of two gives 0.5."),
        "bland_altman": ("Limits of agreement", "For predicted and measured T-scores: the range within which about 95 %"
                         " of the differences lie, the mean difference (bias) plus or minus 1.96 standard deviations"
                         " (Bland and Altman 1986)."),
        "bootstrap": ("Bootstrap interval", "A 95 % interval found by weighting the test pictures at random many times"
                      " and measuring anew each time. All pictures of one patient, and all copies of one picture, are"
                      " weighted together, since they are not independent."),
        "brier": ("Brier score", "The mean squared difference between the predicted probability and what was true (0 or"
                  " 1). Lower is better; always saying 0.5 gives 0.25."),
        "calibration": ("Calibration", "Whether probabilities mean what they say: of all pictures given 0.8, about 80 %"
                        " should have the disease. A model can rank pictures well (high AUROC) and be badly"
                        " calibrated."),
        "calibration_error": ("Calibration error", "The mean gap between the predicted probability and the observed"
                              " share of cases, over groups of pictures with similar probabilities. 0 is perfect."),
        "confusion": ("Confusion matrix", "How many pictures of each true class (rows) were called each class"
                      " (columns)."),
        "cross_validation": ("Cross-validation", "The patients are divided into equal parts, called folds. Each fold is"
                             " tested once, by a network trained on the others; a repeat does this again with a new"
                             " division (another seed)."),
        "leak": ("Data leakage", "The same picture, a copy of it, or another picture of the same patient is on both"
                 " sides of a split. The network then recognises what it has already seen, and its results are too"
                 " good."),
        "decision_curve": ("Decision curve", "Net benefit plotted against the probability above which one would act."
                           " A model is useful where its curve lies above both 'call every picture' and 'call none'"
                           " (Vickers and Elkin 2006)."),
        "delong": ("DeLong's test", "A test of whether two AUROCs measured on the same pictures differ (DeLong et al."
                   " 1988)."),
        "dxa": ("DXA", "Dual-energy X-ray absorptiometry, the reference method for bone density, usually of the hip and"
                " the spine. Quantitative ultrasound (QUS) of the heel is cheaper and only approximates it."),
        "ensemble": ("Ensemble", "Several models that answer together: their probabilities are averaged."),
        "f1": ("F1", "The harmonic mean of precision and recall. Here it is a macro average: computed for each class,"
               " then averaged."),
        "grad_cam": ("Grad-CAM", "A heat map of the regions that speak for the disease, according to the network's last"
                     " feature map (Selvaraju et al. 2017). It is coarse: it points to regions, not to structures. A"
                     " sanity check compares it with maps of networks with random weights; if the maps are alike, they"
                     " do not show what was learnt."),
        "holm": ("Holm's correction", "When several tests are made, one is likely to be significant by chance alone."
                 " Holm's correction raises the p-values so that the probability of any false finding among them stays"
                 " below 5 % (Holm 1979)."),
        "kappa": ("Quadratic weighted kappa", "Agreement between called and true class beyond chance, where a call two"
                  " classes off counts four times as much as a call one class off. 0 is chance, 1 is perfect."),
        "likelihood_ratio": ("Likelihood ratio", "How much better a model with one more variable explains the data than"
                             " the model without it. Here: whether the picture adds anything to age, sex and so on."),
        "logit": ("Logit", "The raw output of a network: the logarithm of the odds. 0 is a probability of 0.5."),
        "macro": ("Macro average", "The mean over the classes, each counting equally, however many pictures it has."),
        "mcnemar": ("McNemar's test", "A test of whether one of two models is right more often on the same pictures. It"
                    " counts only those on which one is right and the other wrong (McNemar 1947)."),
        "mae": ("Mean absolute error", "The mean size of the difference between predicted and measured T-score,"
                " whatever its sign."),
        "net_benefit": ("Net benefit", "True positives minus false positives, per picture, where a false positive is"
                        " weighted by the odds of the probability above which one would act. 0 is the benefit of never"
                        " acting."),
        "osteopenia": ("Osteopenia", "Low bone density, short of osteoporosis: by the WHO, a T-score between -1 and"
                       " -2.5."),
        "osteoporosis": ("Osteoporosis", "Bone density so low that bones break easily: by the WHO, a T-score of -2.5 or"
                         " lower."),
        "p_value": ("p-value", "How likely a difference at least this large would be if there were none. Below 0.05 is"
                    " called significant here. A large p-value does not show that there is no difference."),
        "phantom": ("Phantom", "A drawn picture that imitates a knee radiograph. Phantoms show that the software works;"
                    " results on them say nothing about patients."),
        "ppv": ("Predictive values", "PPV: the share of positive calls that are right. NPV: the share of negative calls"
                " that are right. Both depend on how frequent the disease is (its prevalence), so they are given for a"
                " stated prevalence."),
        "precision": ("Precision", "The share of calls of a class that are right. Here it is a macro average: computed"
                      " for each class, then averaged."),
        "prevalence": ("Prevalence", "The share of people who have the disease. In an archive of pictures it is usually"
                       " much higher than in a clinic."),
        "primary": ("Primary endpoint", "The one metric named beforehand by which models are compared. Only its tests"
                    " are corrected for their number; everything else is exploratory, and gives hints only."),
        "recall": ("Recall", "The share of the pictures of a class that are found. Here it is a macro average: computed"
                   " for each class, then averaged. For the disease alone, recall is sensitivity."),
        "reliability": ("Reliability curve", "The observed share of cases plotted against the predicted probability. A"
                        " calibrated model lies on the diagonal."),
        "roc": ("ROC curve", "Sensitivity plotted against 1 - specificity, for every possible threshold."),
        "sensitivity": ("Sensitivity", "The share of pictures with the disease that are called positive."
                        " 1 - sensitivity is the share that is missed."),
        "shortcut": ("Shortcut", "Something other than bone that predicts the label, such as the size of the picture or"
                     " the hospital it comes from. A model that uses a shortcut fails on pictures from elsewhere."),
        "specificity": ("Specificity", "The share of pictures without the disease that are called negative."
                        " 1 - specificity is the share of false alarms."),
        "t_score": ("T-score", "Bone density in standard deviations above or below the mean of young, healthy adults."
                    " Above -1 is normal, at or below -2.5 is osteoporosis."),
        "temperature": ("Temperature", "A single number, fitted on validation pictures, by which a network's logits are"
                        " divided to make its probabilities better calibrated (Guo et al. 2017). It does not change the"
                        " order of the pictures."),
        "threshold": ("Threshold", "The probability above which a picture is called positive. A lower threshold raises"
                      " sensitivity and lowers specificity."),
        "validation": ("Validation pictures", "Pictures set aside while training, on which the best epoch, the best"
                       " model and the threshold are chosen. The test pictures take no part in any choice."),
        "wilson": ("Wilson's interval", "A 95 % interval for a proportion, assuming that every picture stands for"
                   " itself (Wilson 1927)."),
        "youden": ("Youden's index", "Sensitivity + specificity - 1. The threshold 'by Youden's index' is the one with"
                   " the largest value on validation, which weighs a missed case and a false alarm equally (Youden"
                   " 1950)."),
    }.items()
}  # fmt: skip
"""By a short name."""


WORDS = {
    "DeLong": "delong", "Holm": "holm", "McNemar": "mcnemar", "Wilson": "wilson", "Youden": "youden",
    "likelihood ratio": "likelihood_ratio", "temperature": "temperature", "calibration error": "calibration_error",
    "average precision": "average_precision", "balanced accuracy": "balanced_accuracy", "kappa": "kappa",
    "limits of agreement": "bland_altman", "mean absolute error": "mae", "net benefit": "net_benefit",
    "predictive values": "ppv", "PPV": "ppv", "NPV": "ppv", "Brier": "brier", "calibration": "calibration",
    "confusion matrices": "confusion", "thresholds": "threshold", "threshold": "threshold", "Grad-CAM": "grad_cam",
    "shortcuts": "shortcut", "leaks": "leak", "primary endpoint": "primary", "AUROC": "auroc",
    "sensitivity": "sensitivity", "specificity": "specificity", "T-scores": "t_score", "T-score": "t_score",
    "precision": "precision", "recall": "recall", "F1": "f1", "accuracy": "accuracy", "p": "p_value",
}  # fmt: skip
"""What a heading calls a term; of several in one heading, the first of these is explained."""


def link_terms(heading: object) -> Markup:
    """A heading in HTML, in which one term leads to its explanation."""
    text = str(heading)
    for word, name in WORDS.items():
        if found := re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
            link = Markup('<a class="term" href="#{}">{}</a>').format(GLOSSARY[name].anchor, found[0])
            return escape(text[: found.start()]) + link + escape(text[found.end() :])
    return escape(text)


def terms(names: Iterable[str] | None = None) -> list[Term]:
    """Terms in alphabetical order.

    Args:
        names: of those that are wanted; all where there is nothing.
    """
    chosen = GLOSSARY.values() if names is None else [GLOSSARY[name] for name in names]
    return sorted(chosen, key=lambda one: one.title.lower())


def as_markdown() -> str:
    """The whole glossary as a page of the documentation, with the anchors of the pages."""
    lines = ["# Glossary", "", "The terms that `osteo`'s pages and tables use.", ""]
    for one in terms():
        lines += [f"## {one.title} {{ #{one.anchor} }}", "", one.meaning, ""]
    return "\n".join(lines)
