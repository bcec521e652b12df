"""--format: what podman's users write, `{{.Name}} {{.Driver}}`, or `json`."""

from __future__ import annotations

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def show(template: str, items: Iterable[Mapping[str, object]]) -> None:
    """Print each item by the template. Raises Error, and nothing is printed then."""
    listed = list(items)
    if template == "json":
        import json

        print(json.dumps(listed, indent=2))
        return
    for line in [render(template, item) for item in listed]:
        print(line)


def render(template: str, item: Mapping[str, object]) -> str:
    """The template with the fields of the item in it; case does not count. Raises Error."""
    import re

    fields = {key.lower().replace("_", ""): value for key, value in item.items()}

    def field(match: re.Match[str]) -> str:
        words = match.group(1).split()
        name = words[-1].lstrip(".").lower() if words else ""
        if not words or words[:-1] not in ([], ["json"]) or name not in fields:
            known = " ".join(sorted("." + key for key in item))
            raise Error(f"--format {template}: {match.group(0)}", hint=f"fields are {known}")
        if words[:-1]:
            import json

            return json.dumps(fields[name])
        return _text(fields[name])

    text = template.replace(r"\t", "\t").replace(r"\n", "\n").removeprefix("table ")
    fields_in_it = r"\{\{\s*(.*?)\s*\}\}"
    if "{{" in re.sub(fields_in_it, "", text):
        raise Error(f"--format {template}: {{{{ is not closed by }}}}")
    return re.sub(fields_in_it, field, text)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_text(each)}" if each else key for key, each in value.items())
    return str(value)
