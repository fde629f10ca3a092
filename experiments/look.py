"""One colour a method and a start, in every experiment; colour-blind readers can tell them apart."""

from lamjax.reports.style import BLUE, DARK, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW

METHODS = {
    "base": GREY,
    "not relaxed": DARK,
    "forces": BLUE,
    "forces and stresses": SKY,
    "zero force": YELLOW,
    "Newton": GREEN,
    "BPTT": VERMILION,
    "implicit": ORANGE,
    "hybrid": PURPLE,
    "forces, then BPTT": "#8b3a00",  # dark vermilion
    "both, the base kept": "#00405e",  # dark blue
}
STARTS = {"small": VERMILION, "finetuned": BLUE, "scratch": DARK}
STUDENTS = {
    "teacher": GREY,
    "DPA-1 distilled": VERMILION,
    "DPA-1 on DFT labels": BLUE,
    "smaller DPA-2 distilled": ORANGE,
}
PRETRAINED = {"multi": VERMILION, "materials": BLUE, "gfn2xtb": GREEN, "pbe": ORANGE}
UNIVERSAL = {"not relaxed": DARK, "lamjax small": VERMILION, "CHGNet 0.3.0": GREY, "Nequix MP-1": BLUE}
PROPERTIES = {"small": BLUE, "fine-tuned": VERMILION}
BASELINES = {"MACE": ORANGE, "NequIP": GREEN, "DPA-2": VERMILION, "DPA-3": BLUE}
