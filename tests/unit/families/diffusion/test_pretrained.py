"""Models that start from pipelines of diffusers are those pipelines, and go back there after training."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapting import DATA, NEGATIVE, PROMPTS, control_images, drawn, looked_up, nets_of, step, swapped
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save
from tiny_pipelines import KINDS, save_pipeline
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.columns import Column
from sfumato.core.rng import SampleRng
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion.adapters.lora import wrapped
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.interchange import lora_files
from sfumato.layers import library_networks

PIXELS = DataSpec(1, 8, 8)
STEPS, GUIDANCE = 4, 3.0
TOLERANCE = 1e-4
"""Of values in [0, 1]; a level of 8-bit images is 0.004."""
DENOISERS = {kind: "transformer" if kind in ("sd3", "pixart") else "unet" for kind in KINDS}
LORA = {"kind": "lora", "rank": 2, "alpha": 3, "ranks": {"to_q": 1}}
CONTROL = {"kind": "controlnet", "column": "edge", "channels": 1}

# Runs where Sfumato cannot be imported: loads each folder, with LoRA if there is one, and draws.
ALONE = """
import json, sys
sys.modules["sfumato"] = None
import numpy as np, torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline
for case in json.load(sys.stdin):
    pipeline = DiffusionPipeline.from_pretrained(case["folder"])
    call = {name: tuple(value) if name.endswith("_size") else value for name, value in case["call"].items()}
    if "control" in case:
        control = ControlNetModel.from_pretrained(case["control"])
        parts = {**pipeline.components, "controlnet": control}
        pipeline = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
        call["image"] = torch.from_numpy(np.load(case["image"]))
    pipeline.set_progress_bar_config(disable=True)
    if "lora" in case:
        pipeline.load_lora_weights(*case["lora"])
    noise = torch.from_numpy(np.load(case["noise"]))
    if "prompt" in call:
        images = pipeline(latents=noise, output_type="pt", **call).images
    else:
        x = noise
        pipeline.scheduler.set_timesteps(call["num_inference_steps"])
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample.detach()
        images = (x / 2 + 0.5).clamp(0, 1)
    np.save(case["images"], images.detach().numpy())
"""


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: save_pipeline(root / kind, kind) for kind in KINDS}


def started(folder: Path, **model: Any) -> DiffusionConfig:
    return _started(folder, json.dumps(model))


@cache
def _started(folder: Path, asked: str) -> DiffusionConfig:
    model = json.loads(asked)
    if folder.name == "sd3":  # whose options are those of another objective than the default one
        found = looked_up(folder.parent, pretrained={"folder": str(folder)}, **model)
        options = found.sampling.model_copy(update={"steps": STEPS, "guidance": GUIDANCE})
        return found.model_copy(update={"sampling": options})
    sampling = {"steps": STEPS, **({} if folder.name == "ddpm" else {"guidance": GUIDANCE})}
    return looked_up(folder.parent, pretrained={"folder": str(folder)}, sampling=sampling, **model)


def data_of(kind: str) -> DataSpec:
    return PIXELS if kind == "ddpm" else DATA


def call_of(kind: str) -> dict[str, Any]:
    if kind == "ddpm":
        return {"num_inference_steps": STEPS}
    asked = {"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    sizes = {"height": 8, "width": 8}
    negative = {"negative_prompt": [NEGATIVE] * 2}
    return (
        asked
        | {
            "sd": negative,
            "sd2": negative,
            "xl": {**negative, **sizes, "original_size": (8, 8), "target_size": (8, 8)},
            "sd3": {**negative, **sizes, "sigmas": [1 - i / STEPS for i in range(STEPS)]},
            "pixart": {
                **sizes,
                "negative_prompt": NEGATIVE,
                "use_resolution_binning": False,
                "clean_caption": False,
            },
        }[kind]
    )


@pytest.fixture(scope="module")
def pairs(
    pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sfumato's images and those of one process without Sfumato: of whole models trained for a step, and of
    LoRA on the folders that diffusers wrote."""
    folder = tmp_path_factory.mktemp("adapted")
    asked, own = [], {}

    def case(name: str, kind: str, config: DiffusionConfig, place: Path, **more: Any) -> None:
        shape = (2, 4, 4) if kind != "ddpm" else (1, 8, 8)
        noise = folder / f"noise-{kind}.npy"
        np.save(noise, SampleRng(7, range(2)).normal(*shape).numpy())
        paths = {"folder": str(place), "noise": str(noise), "images": str(folder / f"{name}.npy")}
        asked.append({**paths, "call": call_of(kind), **more})

    for kind in KINDS:
        config = started(pipelines[kind])
        nets = nets_of(config, data_of(kind))
        step(config, nets, data=data_of(kind))
        own[kind] = drawn(config, nets, data_of(kind))
        config.build(data_of(kind)).export_diffusers(nets, str(folder / kind), config.sampling)
        case(kind, kind, config, folder / kind)
    for name, kind, adapter in (
        ("lora", "sd", LORA),
        ("dora", "sd", {"kind": "lora", "rank": 2, "dora": True}),
        ("lora-sd3", "sd3", {"kind": "lora", "rank": 2}),
    ):
        config = started(pipelines[kind], adapter=adapter)
        nets = nets_of(config)
        step(config, nets, rate=0.5)
        own[name] = drawn(config, nets)
        config.build(DATA).export_diffusers(nets, str(folder / name), config.sampling)
        forms = [(name, [str(folder / name)])]
        if name == "lora":
            own["kohya"] = own[name]
            forms.append(("kohya", [str(folder / name / "kohya" / "lora.safetensors")]))
        for form, lora in forms:
            case(form, kind, config, pipelines[kind], lora=lora)
            if kind == "sd":
                asked[-1]["folder"] = str(swapped(folder / f"{form}-base", pipelines[kind], folder / kind))
    config = started(pipelines["sd"], adapter=CONTROL)
    nets = nets_of(config)
    step(config, nets, rate=0.5)
    own["control"] = drawn(config, nets)
    config.build(DATA).export_diffusers(nets, str(folder / "control"), config.sampling)
    np.save(folder / "image.npy", control_images().numpy() / 2 + 0.5)
    base = swapped(folder / "control-base", pipelines["sd"], folder / "sd")
    case("control", "sd", config, base, control=str(folder / "control"), image=str(folder / "image.npy"))
    told = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return {name: (images, torch.from_numpy(np.load(folder / f"{name}.npy"))) for name, images in own.items()}


@pytest.mark.parametrize("name", [*KINDS, "lora", "kohya", "dora", "lora-sd3", "control"])
def test_trained_and_exported_models_draw_the_same_in_diffusers(
    name: str, pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    own, theirs = pairs[name]
    assert own.shape == theirs.shape
    assert float(own.std()) > 0.02, "the images show something"
    torch.testing.assert_close(theirs, own, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_folders(kind: str, pipelines: dict[str, Path]) -> None:
    config = started(pipelines[kind])
    assert config.problems(data_of(kind)) == []
    stored = library_networks.read(pipelines[kind] / DENOISERS[kind])
    own = nets_of(config, data_of(kind))["network"].state_dict()
    for name, value in stored.items():
        (found,) = [key for key in own if key == name or key.endswith(f".{DENOISERS[kind]}.{name}")]
        assert torch.equal(own[found], value)
    again = DiffusionConfig.model_validate(config.model_dump(mode="json"))
    assert again.completed() is again
    assert again == config, "the recorded recipe means the same"


def test_scheduler_latents_and_texts_are_understood(pipelines: dict[str, Path]) -> None:
    sd, sd2, sd3 = (started(pipelines[kind]) for kind in ("sd", "sd2", "sd3"))
    objective = sd.objective.model_dump()
    assert (objective["schedule"], objective["betas"]) == ("scaled_linear", None)
    assert objective["prediction"] == "epsilon"
    assert sd2.objective.model_dump()["prediction"] == "v"
    assert sd3.objective.model_dump()["shift"] == 3.0
    assert sd3.text is not None
    assert [encoder.layer_used for encoder in sd3.text.encoders] == [-2, -2, -1]


def test_the_noise_of_stable_diffusion_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule

    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    own = NoiseSchedule("scaled_linear", 1000, ends=(0.00085, 0.012))
    torch.testing.assert_close(own.alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_chosen_layers_alone_train(pipelines: dict[str, Path]) -> None:
    config = started(pipelines["sd"], adapter={"kind": "layers", "train": ["attn2.*"]})
    assert config.problems(DATA) == []
    nets = nets_of(config)
    before = {name: value.clone() for name, value in nets["network"].state_dict().items()}
    step(config, nets)
    moved = {
        name for name, value in nets["network"].state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved
    assert all(".attn2." in name for name in moved)


@pytest.mark.parametrize("adapter", [LORA, {"kind": "lora", "rank": 2, "dora": True}, CONTROL])
def test_the_first_step_sees_the_base(adapter: dict[str, Any], pipelines: dict[str, Path]) -> None:
    plain, config = started(pipelines["sd"]), started(pipelines["sd"], adapter=adapter)
    base, nets = nets_of(plain), nets_of(config)
    assert config.problems(DATA) == []
    difference = (drawn(config, nets) - drawn(plain, base)).abs().max()
    assert float(difference) <= (1e-5 if "dora" in adapter else 0)
    step(config, nets, rate=0.5)
    assert float((drawn(config, nets) - drawn(plain, base)).abs().max()) > 1e-3


def test_additions_are_those_of_the_paper(pipelines: dict[str, Path]) -> None:
    """W x + alpha / r B A x, with ranks by pattern."""
    config = started(pipelines["sd"], adapter=LORA)
    network = nets_of(config)["network"]
    modules = wrapped(network)
    assert modules
    for name, module in modules.items():
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert len(a) == (1 if name.endswith("to_q") else 2)
        nn.init.normal_(b)
        x = torch.randn(3, a.shape[1])
        expected = module.base_layer(x) + 3 / len(a) * x @ a.T @ b.T
        torch.testing.assert_close(module(x), expected)


def test_files_of_both_kinds_are_read_back(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = started(pipelines["sd"], adapter=LORA)
    nets = nets_of(config)
    step(config, nets, rate=0.5)
    config.build(DATA).export_diffusers(nets, str(tmp_path / "mine"), config.sampling)
    kohya = tmp_path / "mine" / "kohya" / "mine.safetensors"
    with safe_open(kohya, framework="pt") as content:
        assert content.metadata()["modelspec.architecture"] == "stable-diffusion-v1/lora"
    for file in (tmp_path / "mine" / lora_files.DIFFUSERS, kohya):
        again = started(pipelines["sd"], adapter={**LORA, "start": {"file": str(file)}})
        found = nets_of(again)["network"].state_dict()
        for name, value in nets["network"].state_dict().items():
            assert torch.equal(found[name], value), name
    other = started(pipelines["sd"], adapter={**LORA, "alpha": 2, "start": {"file": str(kohya)}})
    with pytest.raises(CheckpointError, match=r"has rank . and alpha 3 for .* set those of the file"):
        nets_of(other)


def test_what_diffusers_saved_is_read(pipelines: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig as Peft
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(pipelines["sd"])
    pipeline.unet.add_adapter(
        Peft(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
    )
    adapter = {"kind": "lora", "rank": 2, "alpha": 4, "modules": ["to_q", "to_v"]}
    start = {"file": str(tmp_path / "pytorch_lora_weights.safetensors")}
    config = started(pipelines["sd"], adapter={**adapter, "start": start})
    network: Any = nets_of(config)["network"]
    x, t, states = torch.randn(1, 2, 4, 4), torch.tensor(500), torch.randn(1, 9, 8)
    with torch.no_grad():
        own = network.network.network.unet(x, t, encoder_hidden_states=states).sample
        theirs = pipeline.unet(x, t, encoder_hidden_states=states).sample
    torch.testing.assert_close(own, theirs)


def test_what_cannot_be_adapted_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    def line(**adapter: Any) -> str:
        (found,) = started(pipelines["sd"], adapter=adapter).problems(DATA)
        return found

    assert "nothing matches 'to_w'; nearest are " in line(kind="lora", modules=["to_w"])
    assert "nothing matches 'attn9.*'" in line(kind="layers", train=["attn9.*"])
    assert "rank: 64 is above the 8 of" in line(kind="lora", rank=64)
    alone = DiffusionConfig.model_validate({"family": "diffusion", "adapter": {"kind": "lora"}})
    assert any("adapts a trained network" in problem for problem in alone.problems(PIXELS))
    with pytest.raises(ConfigError, match="name the folder of a whole pipeline"):
        looked_up(tmp_path, pretrained={"folder": str(pipelines["sd"] / "unet"), "subfolder": ""})
    other = started(pipelines["sd"]).model_copy(update={"network": started(pipelines["sd2"]).network})
    assert "controlnet needs a U-Net of texts" in started(pipelines["sd3"], adapter=CONTROL).problems(DATA)[0]
    assert "the data has no 'edges'" in line(**{**CONTROL, "column": "edges"})
    small = replace(DATA, extra={**DATA.extra, "edge": Column("image", "uint8", (1, 4, 4))})
    control = started(pipelines["sd"], adapter=CONTROL)
    assert "'edge' is 4x4, the images are 8x8; pack it at their size" in control.problems(small)[0]
    assert started(pipelines["sd"], adapter={**CONTROL, "halvings": 0}).problems(small) == []
    assert any("brings its own network" in problem for problem in other.problems(DATA))
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises((ConfigError, CheckpointError), match="a pickle is never read"):
        looked_up(
            tmp_path,
            pretrained={"folder": str(pipelines["sd"])},
            adapter={**LORA, "start": {"file": "lora.bin"}},
        )


def test_a_single_file_needs_a_description(pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="file needs like"):
        looked_up(tmp_path, pretrained={"file": "x.safetensors"})
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(ConfigError, match="is not the StableDiffusionPipeline that"):
        looked_up(tmp_path, pretrained={"file": "x.safetensors", "like": str(pipelines["sd"])})
