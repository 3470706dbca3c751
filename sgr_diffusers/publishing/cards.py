"""Renders cards from the templates of `hub_cards/` and recorded values, and finds what is wrong with a card.

This is the one place where cards are rendered. A value that is missing is an error: nothing that was not recorded gets
into a card.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

__all__ = [
    "REQUIRED_SECTIONS",
    "SKM_TEA_LICENCE",
    "card_faults",
    "package_link",
    "python_blocks",
    "render_card",
    "template_folder",
    "token_like",
]

# Of all that was made from SKM-TEA.
SKM_TEA_LICENCE: dict[str, Any] = {
    "license": "other",
    "license_name": "skm-tea-research-use",
    "license_link": "https://github.com/StanfordMIMI/skm-tea",
}

REQUIRED_SECTIONS = {
    "model": (
        "Intended use",
        "How to use",
        "What a bound means, and what it does not",
        "Training data and its licence",
        "Training",
        "Evaluation",
        "Environmental cost",
        "Citation",
    ),
    # of one network, as the training scripts publish it
    "network": ("Intended use", "How to use", "Training data and its licence", "Training", "Evaluation", "Citation"),
    "dataset": ("What it is not", "Licence"),
    "space": (),
}
_LEFT_OPEN = ("[More Information Needed]", "TODO", "{{", "{%", "lorem ipsum")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}")


def template_folder() -> Path:
    """Return the folder `hub_cards/` of a working copy, or of the installed package.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    beside = Path(__file__).parents[2] / "hub_cards"
    if (beside / "model_card.md.jinja").is_file():
        return beside
    for file in importlib.metadata.files("sgr-diffusers") or []:
        if file.name == "model_card.md.jinja":
            return Path(file.locate()).resolve().parent
    raise FileNotFoundError("hub_cards/ is not there: install the package again, or work in a clone.")


def package_link() -> str:
    """Return name of this package, as a link if its metadata say where its code is (`[project.urls]`, Repository)."""
    try:
        listed = importlib.metadata.metadata("sgr-diffusers").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source tree
        listed = []
    urls = dict(entry.split(", ", maxsplit=1) for entry in listed)
    return f"[sgr_diffusers]({urls['Repository']})" if "Repository" in urls else "sgr_diffusers"


def render_card(template: str, values: dict[str, Any]) -> str:
    """Fill a template.

    Args:
        template: name of the template in `hub_cards/`.
        values: all values that it asks for, by name.

    Raises:
        ValueError: the template asks for what is not among the values.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(template_folder())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, loader=loader, keep_trailing_newline=True)
    try:
        text = environment.get_template(template).render({"sgr_diffusers": package_link(), **values})
    except jinja2.UndefinedError as error:
        raise ValueError(f"{template} asks for what was not recorded: {error}.") from error
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def card_faults(text: str, kind: str, folder: Path) -> list[str]:
    """List what is wrong with a card; the list is empty for one that can be published.

    The checks cover metadata, sections that must be there, what was left open, links, Python that does not compile,
    and tokens.

    Args:
        text: text of the card.
        kind: kind of the card, "model", "network", "dataset" or "space".
        folder: folder of the repository, in which relative links are looked up.
    """
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard

    faults = []
    try:
        card_class = {"dataset": DatasetCard, "space": SpaceCard}.get(kind, ModelCard)
        data = card_class(text).data.to_dict()
    except Exception as error:  # of YAML, or of whatever the card class expects of it
        return [f"the metadata cannot be read: {' '.join(str(error).split())}"]
    faults += _metadata_faults(data, kind, folder)
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    headings = {line.lstrip("#").strip() for line in re.findall(r"^#+ .+$", body, flags=re.MULTILINE)}
    faults += [f"the section {name!r} is missing" for name in REQUIRED_SECTIONS[kind] if name not in headings]
    if kind in ("model", "network") and "not for clinical use" not in body.lower():
        faults.append("it does not say that the model is not for clinical use")
    faults += [f"it was left open: {phrase}" for phrase in _LEFT_OPEN if phrase in text]
    for number, code in enumerate(python_blocks(text), start=1):
        try:
            compile(code, f"Python block {number}", "exec")
        except SyntaxError as error:
            faults.append(f"Python block {number} is no Python: {error.msg}, line {error.lineno}")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)):
        is_web = re.fullmatch(r"https://[\w.-]+\.[a-z]+(/\S*)?", target)
        if not is_web and not target.startswith("#") and not (folder / target.split("#")[0]).is_file():
            faults.append(f"the link {target} leads nowhere")
    if token_like(text):
        faults.append("it holds what looks like a token of the Hub")
    return faults


def _metadata_faults(data: dict[str, Any], kind: str, folder: Path) -> list[str]:
    wanted = {
        "model": ("library_name", "pipeline_tag", "license", "tags"),
        "network": ("library_name", "pipeline_tag", "tags"),  # a licence only where the data has one that is known
        "dataset": ("license", "task_categories", "tags"),
        "space": ("title", "sdk", "sdk_version", "app_file"),
    }[kind]
    faults = [f"the metadata has no {name}" for name in wanted if not data.get(name)]
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        faults.append("the licence `other` needs license_name and license_link")
    app = data.get("app_file")
    if kind == "space" and app and not (folder / app).is_file():
        faults.append(f"app_file {app} is not there")
    return faults


def python_blocks(text: str) -> list[str]:
    """Return the Python code in a card, block by block."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def token_like(text: str | bytes) -> bool:
    """Return whether something in it looks like a token of the Hub."""
    return bool(_TOKEN.search(text.encode(errors="replace") if isinstance(text, str) else text))
