"""Shows plait's docstrings, which have Keras' sections, as the Google style that griffe reads."""

import re
import textwrap

import griffe

# Sections whose head stands at the left margin. griffe reads the others itself.
SECTION = re.compile(
    r"^(Args|Attributes|Call arguments|Example|Raises|References|Returns):$", flags=re.M
)

# What a Keras layer, loss or metric implements, of which its user sees nothing.
HOOKS = re.compile(
    r"build|call|__call__|compute_\w+|(get|from)_config|\w+_own_variables|\w+_assets|on_\w+|update_state|result|__sklearn_tags__"
)
# What one member of a family implements; its base describes it.
OF_FAMILIES = re.compile(r"select|limit|capacity|balance|log_density|mean|target|per_example|state")
BASES = {"Family", "MixtureObjective", "Router"}


class Sections(griffe.Extension):
    """Rewrites every docstring before it is parsed, and leaves out Keras' hooks."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Goes through a package that is loaded."""
        del kwargs
        _go_through(pkg)


def _go_through(owner: griffe.Object) -> None:
    """Rewrites what a module or class holds, and the docstring of its own."""
    if owner.docstring is not None:
        owner.docstring.value = rewritten(owner.docstring.value, of_class=owner.is_class)
    for name, member in list(owner.members.items()):
        of_family = owner.name not in BASES and OF_FAMILIES.fullmatch(name)
        if owner.is_class and (HOOKS.fullmatch(name) or of_family):
            owner.del_member(name)
        elif not member.is_alias:
            _go_through(member)


def rewritten(text: str, of_class: bool) -> str:
    """Returns a docstring in which griffe and Markdown know every section."""
    head, *parts = SECTION.split(text)
    sections = [_section(*pair, of_class) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return "\n\n".join([head.rstrip(), *sections])


def _section(name: str, body: str, of_class: bool) -> str:
    """Returns one section, its head with it."""
    body = textwrap.dedent(body.strip("\n")).rstrip()
    if name == "Example":
        return f"Examples:\n{textwrap.indent(body, '    ')}"
    if name == "References":
        lines = body.replace(".\n", ".  \n")
        return f"**References**\n\n{lines}"
    if name == "Returns" and of_class:
        return f"**Returns of a call**\n\n{body}"
    if name == "Call arguments":
        items = re.sub(r"^(\w+): ", r"- **`\1`**: ", body, flags=re.M)
        return f"**Arguments of a call**\n\n{items}"
    return f"{name}:\n{textwrap.indent(body, '    ')}"
