"""The trained classifier, in a folder that needs torch, numpy and Pillow alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save

from mdaug import augment
from mdaug.measures import classifier, image_set, small_resnet
from mdaug.recipe.trials import Material, Trial, fit, members
from shards import atomic
from shards.colormap import COLORMAPS
from shards.colormap import colormap as colours_of

FOLDER = "classifier"
WEIGHTS, SETTINGS, PREDICT = f"{FOLDER}/classifier.safetensors", f"{FOLDER}/classifier.json", f"{FOLDER}/predict.py"
TRAIN = f"{FOLDER}/train.py"
FILES = (WEIGHTS, SETTINGS, PREDICT, TRAIN, f"{FOLDER}/augment.py", f"{FOLDER}/small_resnet.py")

SCRIPT = '''"""Predict the class of spectrograms: python predict.py IMAGE.png ... (torch, numpy, Pillow)

It prints a line for each image: class and probability. Where all of them lie in folders named after the classes, as in
python predict.py new/*/*.png, it also says how well these are recognised.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from augment import Policy  # noqa: E402
from small_resnet import SmallResNet  # noqa: E402

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "classifier.json").read_text(encoding="utf-8"))
KINDS = {"F32": np.float32, "F64": np.float64, "I64": np.int64}


def load():
    """Return the network, as train.py left it or as the recipe did.

    The recipe's file is in the format of safetensors: length, JSON header, bytes.
    """
    if (HERE / "retrained.pt").is_file():
        weights = torch.load(HERE / "retrained.pt", weights_only=True)
        model = SmallResNet(ABOUT["channels"], len(weights["head.bias"]))
        model.load_state_dict(weights)
        return model.eval()
    data = (HERE / "classifier.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    weights = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            array = np.frombuffer(data[first:last], KINDS[entry["dtype"]]).reshape(entry["shape"])
            weights[name] = torch.from_numpy(array.copy())
    model = SmallResNet(ABOUT["channels"], len(weights["head.bias"]))
    model.load_state_dict(weights)
    return model.eval()


def read(path):
    """Return an image as the network sees it, uint8 (size, size, channels)."""
    image = Image.open(path)
    if ABOUT["channels"] == 3:
        pixels = np.asarray(image.convert("RGB"))
    elif image.mode in ("L", "P"):  # of a palette the numbers are the levels
        pixels = np.asarray(image)
    elif ABOUT["colours"] is None:
        pixels = np.asarray(image.convert("L"))
    else:  # the level whose colour is nearest
        flat = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int32)
        unique, back = np.unique(flat, axis=0, return_inverse=True)
        table = np.array(ABOUT["colours"])
        nearest = np.concatenate([((p[:, None] - table) ** 2).sum(2).argmin(1) for p in np.array_split(unique, 64)])
        levels = (nearest * 255 / (len(table) - 1)).round().astype(np.uint8)
        pixels = levels[back.ravel()].reshape(image.height, image.width)
    resized = Image.fromarray(pixels).resize((ABOUT["image_size"],) * 2, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=ABOUT["jpeg_quality"], subsampling=0)
    return np.asarray(Image.open(buffer)).reshape(*resized.size, -1)


@torch.no_grad()
def predict(paths):
    """Return the probabilities of the classes, (images, classes), averaged over the policy's transformed copies."""
    model, policy, images = load(), Policy.from_json(ABOUT["policy"]), np.stack([read(path) for path in paths])
    rng = np.random.default_rng([policy.seed, 2])
    views = [policy(images, rng, ABOUT["floor"]) for _ in range(policy.copies)] or [images]
    pixels = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(view, -1, 1))).float() / 127.5 - 1 for view in views]
    logits = [
        torch.cat([model.head(model.features(part)) for part in view.split(256)])[:, : len(ABOUT["classes"])].double()
        for view in pixels
    ]
    return torch.stack([torch.softmax(view, 1) for view in logits]).mean(0).numpy()


def main(paths):
    if not paths:
        sys.exit(__doc__.strip())
    if (HERE / "retrained.pt").is_file():
        print("predicted by retrained.pt of train.py; without that file the recipe's classifier does", file=sys.stderr)
    found = predict(paths)
    for path, row in zip(paths, found):
        print(f"{path}: {ABOUT['classes'][row.argmax()]} ({row.max():.2f})")
    named = [Path(path).resolve().parent.name for path in paths]
    if set(named) <= set(ABOUT["classes"]):
        truth = np.array([ABOUT["classes"].index(name) for name in named])
        recalls = {ABOUT["classes"][k]: (found.argmax(1) == k)[truth == k].mean() for k in np.unique(truth)}
        each = ", ".join(f"{name} {100 * recall:.0f}" for name, recall in recalls.items())
        mean = 100 * np.mean(list(recalls.values()))
        print(f"mean recall of {len(paths)} images by their folders: {mean:.1f} % ({each})", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
'''


TRAINING = '''"""Train the classifier again on ../training_set: python train.py [STEPS] (torch, numpy, Pillow)

A place to begin where another network or other images are to be tried. It leaves retrained.pt, which predict.py takes.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import predict
from predict import ABOUT, HERE, Policy, SmallResNet

SET = HERE.parent / "training_set"


def samples(folder):
    """Return images, uint8 (n, size, size, channels), labels (n,) and weights (n,) of a folder of tar shards."""
    images, labels, weights = [], [], []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".cls"):
                    labels.append(int(data))
                elif member.name.endswith(".json"):
                    weights.append(json.loads(data)["weight"])
                else:
                    images.append(predict.read(io.BytesIO(data)))
    return np.stack(images), np.array(labels), np.array(weights)


def targets_of(source, labels):
    """Return the probabilities that a source's images are trained with, (n, outputs)."""
    outputs = len(ABOUT["classes"])
    if source["target"] == "its class":
        return np.eye(outputs)[labels]
    if source["target"] == "all target classes, equally":
        return np.full((len(labels), outputs), 1 / outputs)
    own = np.eye(labels.max() + 1)[labels]  # its own class, as a further output
    return np.concatenate([np.zeros((len(labels), outputs)), own], axis=1)


def train(model, parts, steps, rate, batch_size, rng):
    """Train on [(images, targets, weights)] of one stage."""
    images, targets, weights = (np.concatenate(part) for part in zip(*parts))
    policy = Policy.from_json(ABOUT["policy"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        chosen = rng.choice(len(images), batch_size, p=weights / weights.sum())
        pixels = np.moveaxis(policy(images[chosen], rng, ABOUT["floor"]), -1, 1)
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1
        target = torch.from_numpy(targets[chosen])
        if policy.mix:
            share = rng.beta(policy.mix, policy.mix)
            batch, target = (share * part + (1 - share) * part.roll(1, 0) for part in (batch, target))
        loss = F.cross_entropy(model.head(model.features(batch)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


def main(steps):
    about = json.loads((SET / "sources.json").read_text(encoding="utf-8"))
    stages = {}
    for source in about["sources"]:
        images, labels, weights = samples(SET / source["folder"])
        stages.setdefault(source["stage"], []).append((images, targets_of(source, labels), weights))
    width = max(targets.shape[1] for parts in stages.values() for _, targets, _ in parts)
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), SmallResNet(ABOUT["channels"], width)
    for stage, parts in sorted(stages.items()):
        print(f"stage {stage} of {len(stages)}: {sum(len(images) for images, _, _ in parts)} images", flush=True)
        padded = [(i, np.pad(t, ((0, 0), (0, width - t.shape[1]))).astype(np.float32), w) for i, t, w in parts]
        train(model, padded, steps, about["learning_rates"][stage - 1], about["batch_size"], rng)
    torch.save(model.state_dict(), HERE / "retrained.pt")
    print(f"predict.py now takes {HERE / 'retrained.pt'}; delete it to go back to the recipe's classifier")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1200)
'''


def write(folder: Path, trial: Trial, material: Material, colormap: str | None) -> None:
    """Train the classifier of a trial on all training images and write it with the scripts that predict and train.

    Args:
        folder: the output folder of the recipe.
        trial: one without a fold.
        material: what it is trained on.
        colormap: name of the map of levels, to read pictures in its colours.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    used = material.train.take(members(trial, material))
    with classifier.one_thread():
        model = fit(trial, material)
    with atomic.replacing(folder / WEIGHTS) as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}))
    about = {
        "classes": list(material.classes),
        "channels": used.pixels.shape[-1],
        "image_size": used.pixels.shape[1],
        "jpeg_quality": image_set.JPEG_QUALITY,
        "floor": classifier.floor_of(used.pixels),
        "policy": trial.policy.to_json(),
        "colours": colours_of(colormap).colours.tolist() if colormap in COLORMAPS else None,
    }
    atomic.write_text(folder / SETTINGS, json.dumps(about) + "\n")
    atomic.write_text(folder / PREDICT, SCRIPT)
    atomic.write_text(folder / TRAIN, TRAINING)
    for module in (augment, small_resnet):
        assert module.__file__ is not None
        shutil.copyfile(module.__file__, place / Path(module.__file__).name)
