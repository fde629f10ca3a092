# %% [markdown]
# # Relax many structures
#
# Fifty crystals of wrong lattice constants are relaxed, cells included, and the results are read as a table.

# %%
import csv

import ase.build
import ase.io

import lamjax
from lamjax import relaxation
from lamjax.relaxation import CellConfig, RelaxConfig

MODEL = "small"  # a model that comes with lamjax, or a file
ELEMENTS = "Al Cu Ag Au Ni Pd Pt Rh Ir Pb Si Ge Li Na K Fe Cr Mo W Nb Ta V Ca Sr Ba".split()
STRETCHED = (0.96, 1.04)  # factors of the lattice constants to begin with
FMAX = 0.02  # eV/Å

# %% [markdown]
# The structures are ASE's; any list of `Atoms` will do, of any sizes.

# %%
crystals = []
for symbol in ELEMENTS:
    for factor in STRETCHED:
        atoms = ase.build.bulk(symbol)
        atoms.set_cell(atoms.cell * factor, scale_atoms=True)
        atoms.info["name"] = f"{symbol} x {factor}"
        crystals.append(atoms)

# %% [markdown]
# `stream` gives each relaxation as soon as it is done; `number` says whose it is. What could not be relaxed has an
# `error` and no `relaxation`.

# %%
potential, params = lamjax.load(MODEL)
config = RelaxConfig(fmax=FMAX, max_steps=500, cell=CellConfig())
rows = []
for done in relaxation.stream(potential, params, crystals, config):
    before = crystals[done.number]
    if done.relaxation is None:
        print(before.info["name"], done.error)
        continue
    after = lamjax.to_ase(done.relaxation)  # with energy, forces and stress
    row = {"name": before.info["name"], "volume_before": before.get_volume(), **relaxation.row(done.relaxation)}
    rows.append(row)
    crystals[done.number] = after

# %% [markdown]
# `relaxation.row` makes plain dictionaries: `pandas.DataFrame(rows)` makes a table of them. Both starts of a crystal
# should have come to the same volume:

# %%
rows.sort(key=lambda row: row["name"])
for row in rows:
    print(f"{row['name']:12s} {row['volume_before']:8.3f} -> {row['volume']:8.3f} Å³ in {row['n_steps']} steps")
with open("crystals.csv", "w", newline="") as file:
    table = csv.DictWriter(file, rows[0])
    table.writeheader()
    table.writerows(rows)
ase.io.write("crystals.extxyz", crystals)  # opens in OVITO and the ASE GUI

# %% [markdown]
# ## The same by command
#
# ```sh
# lamjax relax small crystals.extxyz --cell --output relaxed.extxyz
# ```
#
# writes the structures, a picture, and a table with a line a structure, which pandas reads:
#
# ```
# >>> import pandas
# >>> table = pandas.read_csv("relaxed.csv")
# >>> table[~table.converged]
# >>> table.volume_change.describe()
# ```
#
# A killed run goes on with `--resume`. More: [Relax structures](../how-to/relax.md).
