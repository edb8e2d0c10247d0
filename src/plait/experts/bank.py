"""All experts of a mixture: which run together, which alone, and how their state is kept."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.experts.alike import flat_layers, saves_itself, shares_variables, signature
from plait.experts.fresh import Initializers
from plait.experts.single import SingleExpert
from plait.experts.stack import ExpertStack
from plait.ops.backend import unstack
from plait.ops.combine import combine_masks


class Group(NamedTuple):
    """Some experts of a mixture and what runs them.

    Attributes:
        positions: Which experts of the mixture these are.
        runner: What runs them, an `ExpertStack` or a `SingleExpert`.
    """

    positions: list[int]
    runner: Any


class ExpertBank:
    """The experts of one mixture, in groups that run together.

    Args:
        groups: The groups; every expert stands in one of them.
        sources: The experts as the caller gave them, or `None` where they were made of a template.
    """

    def __init__(
        self, groups: Sequence[Group], sources: Sequence[keras.layers.Layer] | None
    ) -> None:
        self.groups = list(groups)
        self.sources = None if sources is None else list(sources)
        self.num_experts = sum(len(group.positions) for group in groups)

    @classmethod
    def of_experts(cls, experts: Sequence[keras.layers.Layer], stack: bool) -> "ExpertBank":
        """Returns a bank of given experts, each built; alike ones run stacked if `stack`."""
        together: dict[Any, list[int]] = {}
        for position, expert in enumerate(experts):
            key: Any = signature(expert) if stack else None
            if key is None or shares_variables(expert, experts):
                key = position
            together.setdefault(key, []).append(position)
        groups = []
        for positions in together.values():
            members = [experts[position] for position in positions]
            if len(members) == 1:
                groups.append(Group(positions, SingleExpert(members[0])))
                continue
            stacked = ExpertStack(
                members[0],
                sources=members,
                num_experts=len(members),
                name=_name_of([member.name for member in members]),
            )
            groups.append(Group(positions, stacked))
        return cls(groups, experts)

    @classmethod
    def of_template(
        cls, scaffold: keras.layers.Layer, initializers: Initializers, num_experts: int
    ) -> "ExpertBank":
        """Returns a bank of fresh experts in the image of a built scaffold."""
        stacked = ExpertStack(
            scaffold,
            num_experts=num_experts,
            initializers=initializers,
            name=f"{scaffold.name}_x{num_experts}",
        )
        return cls([Group(list(range(num_experts)), stacked)], None)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers that own the experts' variables, for the mixture to track."""
        return [group.runner for group in self.groups]

    @property
    def saving_themselves(self) -> list[keras.layers.Layer]:
        """The layers whose state Keras must save, since `state` cannot hold it."""
        return [
            group.runner.representative()
            for group in self.groups
            if isinstance(group.runner, SingleExpert)
            and saves_itself(group.runner.representative())
        ]

    def output_specs(self, inputs: Sequence[Any]) -> list[tuple[int, str, Any]]:
        """Returns position, name and output specs of one expert for each kind there is.

        Args:
            inputs: Symbolic inputs that all experts share, or one per expert.
        """
        found = []
        for group in self.groups:
            layer = group.runner.representative()
            fed = _share(inputs, group)
            for position, part in zip(group.positions, fed, strict=False):
                name = self.sources[position].name if self.sources else layer.name
                found.append((position, name, layer.compute_output_spec(part)))
        return sorted(found, key=lambda entry: entry[0])

    def run_all(self, inputs: Sequence[Any], masks: Sequence[Any] | None, training: bool) -> Any:
        """Runs every expert on every example.

        Args:
            inputs: One structure that all experts share, or one per expert.
            masks: As `inputs`, or `None`.
            training: As in Keras.

        Returns:
            The outputs' structure with leaves `(e, b, …, u)`, and a flat list with a mask for each
            leaf: where it is valid for every expert, or `None`.
        """
        results = []
        for group in self.groups:
            fed, fed_masks = _share(inputs, group), masks and _share(masks, group)
            results.append(group.runner(fed, masks=fed_masks, training=training))
        structure = results[0][0]
        leaves = [tree.flatten(outputs) for outputs, _ in results]
        joined = [self._in_order(column) for column in zip(*leaves, strict=True)]
        all_masks = [
            combine_masks([None if mask is None else ops.all(mask, axis=0) for mask in column])
            for column in zip(*(output_masks for _, output_masks in results), strict=True)
        ]
        return tree.pack_sequence_as(structure, joined), all_masks

    def _in_order(self, parts: Sequence[Any]) -> Any:
        """Returns one tensor `(e, …)` from the groups' `(e_g, …)`, in the experts' order."""
        if len(parts) == 1:
            return parts[0]
        slices: dict[int, Any] = {}
        for group, part in zip(self.groups, parts, strict=True):
            slices.update(zip(group.positions, unstack(part), strict=True))
        return ops.stack([slices[position] for position in range(self.num_experts)])

    def run_chosen(
        self,
        inputs: Sequence[Any],
        masks: Sequence[Any] | None,
        indices: Any,
        capacity: int | None,
        training: bool,
    ) -> Any:
        """Runs each expert on the rows that chose it, and on no others.

        Args:
            inputs: As for `run_all`; leaves `(n, …)`.
            masks: As `inputs`, or `None`.
            indices: int32 `(n, k)`; `num_experts` stands for nobody.
            capacity: Most rows that one expert may have, or `None` for any load.
            training: As in Keras.

        Returns:
            The outputs' structure with leaves `(n, k, …, u)`, zero where nobody was chosen; and a
            flat list with a mask `(n, …)` or `None` for each leaf.

        Raises:
            CoupledRowsError: See `plait.experts.rows.run_chosen`.
        """
        total: Any = None
        valid: Any = None
        for positions, runner in self._groups_for(inputs):
            table = np.full(self.num_experts + 1, len(positions), "int32")
            table[positions] = np.arange(len(positions))
            local = ops.take(table, indices)
            outputs, output_masks = runner.run_chosen(
                inputs[positions[0] if len(inputs) > 1 else 0],
                masks and masks[positions[0] if len(masks) > 1 else 0],
                local,
                capacity,
                training,
            )
            total = outputs if total is None else tree.map_structure(ops.add, total, outputs)
            somebody = local < len(positions)
            invalid = [_invalid(mask, somebody) for mask in output_masks]
            valid = invalid if valid is None else [*map(_either, valid, invalid)]
        merged = [None if bad is None else ops.logical_not(ops.any(bad, axis=1)) for bad in valid]
        return total, merged

    def _groups_for(self, inputs: Sequence[Any]) -> list[Group]:
        """Returns the groups, those taken apart whose experts read different inputs."""
        groups = []
        for group in self.groups:
            if len(_share(inputs, group)) == 1:
                groups.append(group)
            else:
                groups += [
                    Group([position], group.runner.only(local))
                    for local, position in enumerate(group.positions)
                ]
        return groups

    def values(self) -> list[list[Any]]:
        """Returns the present values of each expert's variables, as NumPy arrays."""
        found: list[list[Any]] = [[]] * self.num_experts
        for group in self.groups:
            stacked = group.runner.stacked_values()
            for local, position in enumerate(group.positions):
                found[position] = [value[local] for value in stacked]
        return found

    def set_values(self, values: Sequence[Sequence[Any]]) -> None:
        """Sets the variables of all experts from what `values` returns."""
        for group in self.groups:
            columns = zip(*(values[position] for position in group.positions), strict=True)
            group.runner.set_stacked([np.stack(column) for column in columns])

    def state(self) -> dict[str, Any]:
        """Returns the experts' state for a file, in a form that no way of running them changes.

        Experts whose variables agree in shape lie stacked under `"{set}.{variable}"`.
        """
        values = self.values()
        return {
            f"{number}.{variable}": np.stack([values[position][variable] for position in positions])
            for number, positions in enumerate(self._sets(values))
            for variable in range(len(values[positions[0]]))
        }

    def load_state(self, stored: Any) -> None:
        """Sets the experts' variables from what `state` returns, read from a file.

        Raises:
            ValueError: If a file's variable is missing or of another shape.
        """
        values = [list(expert) for expert in self.values()]
        for number, positions in enumerate(self._sets(values)):
            for variable, present in enumerate(values[positions[0]]):
                key = f"{number}.{variable}"
                shape = (len(positions), *present.shape)
                found = tuple(stored[key].shape) if key in stored.keys() else None  # noqa: SIM118 (an h5 group, not a dict)
                if found != shape:
                    raise ValueError(
                        message(
                            f"The file must hold variable {variable} of experts {positions} "
                            f"as an array of shape {shape}",
                            "nothing" if found is None else f"shape {found}",
                            "Build the mixture of the same experts as the one that was saved",
                        )
                    )
                array = np.asarray(stored[key])
                for local, position in enumerate(positions):
                    values[position][variable] = array[local]
        self.set_values(values)
        self.write_back()

    def _sets(self, values: Sequence[Sequence[Any]]) -> list[list[int]]:
        """Returns the positions of experts whose variables agree in number and shape."""
        itself = {id(layer) for layer in self.saving_themselves}
        sets: dict[Any, list[int]] = {}
        for group in self.groups:
            for position in group.positions:
                if id(group.runner.representative()) not in itself:
                    shapes = tuple(tuple(value.shape) for value in values[position])
                    sets.setdefault(shapes, []).append(position)
        return sorted(sorted(positions) for positions in sets.values())

    def write_back(self) -> None:
        """Gives the experts that the caller passed in the values that training gave the stacks."""
        for group in self.groups:
            if isinstance(group.runner, ExpertStack):
                group.runner.write_back()
        inner = [layer for source in self.sources or [] for layer in flat_layers(source)]
        for layer in inner:
            if isinstance(layer, ExpertStack):  # of a mixture among the experts
                layer.write_back()

    def follow_trainable_flags(self) -> None:
        """Makes stacks trainable where the caller's experts are, which may have changed.

        Raises:
            ValueError: If only some experts of one stack were frozen since they were stacked.
        """
        if self.sources is None:
            return
        for group in self.groups:
            if isinstance(group.runner, ExpertStack):
                group.runner.follow([self.sources[position] for position in group.positions])


def _share(values: Sequence[Any], group: Group) -> list[Any]:
    """Returns one value where all experts of a group share it, else one for each of them."""
    if len(values) == 1:
        return list(values)
    own = [values[position] for position in group.positions]
    return own[:1] if all(value is own[0] for value in own) else own


def _invalid(mask: Any, somebody: Any) -> Any:
    """Returns where a slot's output is masked, false for slots of other groups."""
    if mask is None:
        return None
    rank = len(mask.shape) - len(somebody.shape)
    return ops.logical_and(
        ops.reshape(somebody, (*ops.shape(somebody), *(1,) * rank)), ops.logical_not(mask)
    )


def _either(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return ops.logical_or(left, right)


def _name_of(names: list[str]) -> str:
    """Returns a name that says which experts a stack holds."""
    if len(set(names)) == 1:
        return f"{names[0]}_x{len(names)}"
    return "_".join(names) if len(names) <= 4 else f"{names[0]}_to_{names[-1]}"
