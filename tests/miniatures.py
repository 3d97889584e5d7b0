"""Writers of data sets in miniature, in exactly the formats of the real ones."""

import gzip
import json

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from samo_jax.experiments.data.image_folders import OFFICE_DOMAINS

COUNTS = {"train": 3, "val": 2}


def dense_arrays(layout, rng):
    """What the files of one example hold, in the types they may have."""
    normals = rng.normal(size=(*layout.size, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    content = {
        "segmentation": rng.integers(-1, layout.num_classes, layout.size).astype("f4"),
        "depth": rng.uniform(0, 9, (*layout.size, 1)),
        "normals": normals,
    }
    return {
        "image": rng.random((*layout.size, 3)),
        **{layout.folders[task]: content[task] for task in layout.folders},
    }


def write_dense(folder, layout):
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for index in range(count):
            for name, array in dense_arrays(layout, rng).items():
                path = folder / split / name / f"{index}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)


HEADER = (
    "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
    "u0_atom,u298_atom,h298_atom,g298_atom"
)
# Methane, the first molecule of the data set.
METHANE_ROW = (
    "157.7118,157.70997,157.70699,0.0,13.21,-0.3877,0.1171,0.5048,35.3641,0.044749,"
    "-40.47893,-40.476062,-40.475117,-40.498597,6.469,"
    "-395.999594594,-398.643290011,-401.014646522,-372.471772148"
)
METHANE_ATOMS = [
    ("C", (-0.0127, 1.0858, 0.0080)),
    ("H", (0.0022, -0.0060, 0.0020)),
    ("H", (1.0117, 1.4638, 0.0003)),
    ("H", (-0.5408, 1.4475, -0.8766)),
    ("H", (-0.5238, 1.4379, 0.9064)),
]
METHANE_BONDS = [(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)]
# Hydrogen cyanide, moved far so that the columns touch.
CYANIDE_ATOMS = [
    ("C", (-1000.0133, -1001.1325, -1000.0083)),
    ("N", (0.0023, 0.0192, 0.0019)),
    ("H", (-0.0278, 2.1989, 0.0042)),
]
NEAR_CYANIDE_ATOMS = [("C", (-0.0133, 1.1325, 0.0083)), *CYANIDE_ATOMS[1:]]
CYANIDE_BONDS = [(1, 2, 3), (1, 3, 1)]
LEFT_OUT_HEADER = [
    "",
    "=" * 60,
    "Molecules that failed a consistency check",
    "of their geometries",
    "",
    "",
    "=" * 60,
    "#   Index      GDB17 SMILES      SMILES for B3LYP XYZ    D_IJ",
    "=" * 60,
]


def record(name, atoms, bonds):
    counts = f"{len(atoms):3d}{len(bonds):3d}  0     0  0  0  0  0  0999 V2000"
    zeros = "  0" * 12
    lines = [name, " -OEChem-03231823253D", "", counts]
    for element, (x, y, z) in atoms:
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {element:<3s}{zeros[1:]}")
    lines += [f"{i:3d}{j:3d}{kind:3d}  0  0  0  0" for i, j, kind in bonds]
    return [*lines, "M  END", "$$$$"]


def write_qm9(folder, count=20, left_out=(3, 5)):
    """Methane and hydrogen cyanide in turns, alpha the number of the molecule."""
    raw = folder / "raw"
    raw.mkdir()
    structures, table = [], [HEADER]
    for k in range(1, count + 1):
        kind = (
            (CYANIDE_ATOMS, CYANIDE_BONDS)
            if k % 2 == 0
            else (
                METHANE_ATOMS,
                METHANE_BONDS,
            )
        )
        structures += record(f"gdb_{k}", *kind)
        row = METHANE_ROW.split(",")
        row[3:9] = (str(float(word) + k) for word in row[3:9])
        row[9:] = (str(float(word) * k) for word in row[9:])
        table.append(
            ",".join([f"gdb_{k}", *(METHANE_ROW.split(",") if k == 1 else row)])
        )
    listed = [f"{k:8d}        C             C        6.036217" for k in left_out]
    skipped = [*LEFT_OUT_HEADER, *listed, "=" * 60]
    for name, lines in (
        ("gdb9.sdf", structures),
        ("gdb9.sdf.csv", table),
        ("uncharacterized.txt", skipped),
    ):
        (raw / name).write_text("\n".join(lines) + "\n")


PACK_HEADER = (
    "XYZ_file,Index,SMILES,InChi,N_atoms,Stoichiometry,Elements,XYZ_Ang,Mulliken_pop,"
    "Harmonic_Freq_cmi,RotA_GHz,RotB_GHz,RotC_GHz,Dipole_debye,Polarizability_bohr3,"
    "HOMO_au,LUMO_au,HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,"
    "InternalEnergy_298K_au,Enthalphy_298K_au,GibbsFreeEnergy_298K_au,"
    "Heatcapacity_Cv_cal_mol_K"
)


def write_qm9_pack(folder, count=12):
    """Methane and hydrogen cyanide in turns, in three files; the number of them."""
    data = folder / "qm9pack/data"
    data.mkdir(parents=True)
    rows = []
    for k in range(count):
        atoms = METHANE_ATOMS if k % 2 == 0 else NEAR_CYANIDE_ATOMS
        elements = ",".join(f"'{element}'" for element, _ in atoms)
        places = ",".join(f"[{x},{y},{z}]" for _, (x, y, z) in atoms)
        numbers = [float(number) + k for number in METHANE_ROW.split(",")[3:15]]
        numbers[0] = f"{k}."  # as the package writes whole numbers
        rows.append(
            f'dsgdb9nsd_{k:06d}.xyz,{k},C,InChI=1S/CH4/h1H4,{len(atoms)},"[1,4,0]",'
            f'"[{elements}]","[{places}]","[0.1]","[1.0,2.0]",157.7,157.7,157.7,'
            + ",".join(map(str, numbers))
        )
    for part in range(3):
        lines = [PACK_HEADER, *rows[part::3]]
        (data / f"qm9_part{part + 1}.csv").write_text("\n".join(lines) + "\n")
    return count


ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Young"]
FACES = {  # part and attributes
    "000001.jpg": (0, (-1, 1, 1)),
    "000002.jpg": (1, (1, -1, 1)),
    "000003.jpg": (0, (1, 1, -1)),
    "000004.jpg": (2, (-1, -1, -1)),
}
CELEBA_LAYOUTS = {
    "flat": ("img_align_celeba", "", "", "txt"),
    "distributed": ("Img/img_align_celeba", "Anno", "Eval", "txt"),
    "csv": ("img_align_celeba/img_align_celeba", "", "", "csv"),
}


def colour(k):
    """A colour of its own for each image."""
    return (20 * k, 255 - 30 * k, 100)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_image(path, rgb, size=(178, 218)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, rgb).save(path, quality=95)


def write_celeba(folder, layout="flat"):
    images, anno, evaluation, suffix = CELEBA_LAYOUTS[layout]
    for k, name in enumerate(FACES):
        write_image(folder / images / name, colour(k))
    if suffix == "txt":
        attributes = [str(len(FACES)), " ".join(ATTRIBUTES) + " "]
        attributes += [
            f"{name} " + " ".join(f"{value:2d}" for value in values)
            for name, (_, values) in FACES.items()
        ]
        parts = [f"{name} {part}" for name, (part, _) in FACES.items()]
    else:
        attributes = [",".join(["image_id", *ATTRIBUTES])]
        attributes += [
            ",".join([name, *map(str, values)]) for name, (_, values) in FACES.items()
        ]
        parts = ["image_id,partition"]
        parts += [f"{name},{part}" for name, (part, _) in FACES.items()]
    write(folder / anno / f"list_attr_celeba.{suffix}", "\n".join(attributes) + "\n")
    write(
        folder / evaluation / f"list_eval_partition.{suffix}", "\n".join(parts) + "\n"
    )


def write_office(folder, images="office"):
    for k, domain in enumerate(OFFICE_DOMAINS):
        for suffix, number in (("train", 1), ("val", 2), ("test", 3)):
            listed = [
                f"{domain}/Calendar/0000{number}.jpg 0",
                f"{domain}/Exit_Sign/0000{number}.jpg 29",
            ]
            write(folder / "split" / f"{domain}_{suffix}.txt", "\n".join(listed) + "\n")
            for line in listed:
                write_image(folder / images / line.split()[0], colour(k + 1), (60, 40))


def write_molecules(path, count=240):
    """A table as MoleculeNet's: three tasks with gaps, and a text that is none."""
    rng = np.random.default_rng(0)
    rows = ["toxic,active,rare,mol_id,smiles"]
    for k in range(count):
        chain = "".join(rng.choice(["C", "O", "N", "C", "C"], 4))
        ring = f"C1{'C' * rng.integers(1, 14)}C1"
        toxic = "" if k % 4 == 0 else "01"["O" in chain]
        active = ("1.0" if "N" in chain else "0.0") if k % 5 else ""
        rows.append(f"{toxic},{active},{int(k == 0)},M{k},{chain}{ring}")
    rows.append("0,0.0,0,M,not a molecule")
    content = ("\n".join(rows) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


WORDS = {
    "thanks": 15,
    "lovely": 0,
    "awful": 11,
    "scared": 14,
    "why": 7,
    "haha": 1,
    "sad": 25,
    "wow": 26,
}
FILLERS = ("the", "a", "day", "it", "was", "they", "and", "so")


def write_emotions(folder, counts=(200, 60, 60), ending=".tsv"):
    """Sentences as GoEmotions', whose emotions single words say."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part, count in zip(("train", "dev", "test"), counts, strict=True):
        rows = []
        for k in range(count):
            said = rng.choice([*WORDS], rng.integers(0, 3), replace=False)
            words = [*said, *rng.choice(FILLERS, rng.integers(1, 25))]
            labels = sorted(WORDS[word] for word in said) or [27]
            text = " ".join(rng.permutation(words))
            rows.append(f"{text}\t{','.join(map(str, labels))}\t{part}{k}")
        content = ("\n".join(rows) + "\n").encode()
        path = folder / f"{part}{ending}"
        path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)


def write_minilm(folder, width=16, layers=2):
    """A random encoder in the files of Hugging Face's BERT models."""
    folder.mkdir(exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *FILLERS]
    rng, hidden, positions = np.random.default_rng(0), 2 * width, 64
    shapes = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for k in range(layers):
        for name, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", hidden, width),
            ("output.dense", width, hidden),
        ):
            shapes[f"encoder.layer.{k}.{name}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{k}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{k}.{name}.weight"] = (width,)
            shapes[f"encoder.layer.{k}.{name}.bias"] = (width,)
    weights = {
        name: (rng.normal(0, 0.3, shape) + ("Norm.weight" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    config = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": positions,
    }
    (folder / "config.json").write_text(json.dumps(config))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
