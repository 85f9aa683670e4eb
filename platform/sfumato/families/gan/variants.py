"""The smallest real instance of every member of the family, as in a recipe."""

from __future__ import annotations

from typing import Any

from sfumato.families.gan.losses import LOSSES
from sfumato.families.gan.networks import NETWORKS, NetworkConfig
from sfumato.text.encoders import ENCODERS

PLAIN = {"kind": "dcgan", "channels": [8], "generator_norm": "group", "discriminator_norm": "none"}
RESIDUAL = {"kind": "resnet", "channels": [8]}
R1 = {"every": 2}


def variants() -> dict[str, dict[str, Any]]:
    """Every loss, network, normalisation and penalty at least once."""
    found = {
        "tiny": _member({"channels": [8]}),
        "least-squares": _member({"channels": [8, 8], "discriminator_norm": "batch"}, loss="least_squares"),
        "hinge": _member({**RESIDUAL, "generator_norm": "group"}, loss="hinge", critic_steps=2),
        "wasserstein": _member(PLAIN, loss="wasserstein", gradient_penalty=10.0),
        "r1": _member(PLAIN, r1=R1),
        "r1-finite-difference": _member(PLAIN, r1={**R1, "estimator": "finite_difference"}),
        "unconditional": {**_member(RESIDUAL), "condition": "none"},
    }
    found["text"] = {
        **_member({**RESIDUAL, "generator_norm": "group"}, loss="hinge"),
        "text": {"encoders": [ENCODERS.find("joint").tiny()]},
        "text_attention": [0],
    }
    running = _member({"channels": [8]})
    found["running"] = {
        **{key: value for key, value in running.items() if key != "sampling"},
        "batch_statistics": "running",
        "spectral_norm": "power_iteration",
    }
    joined = [{"kind": kind, "every": 1, "joined": True} for kind in ("r1", "r2")]
    found["relativistic"] = _member(PLAIN, loss="relativistic", penalties=joined)
    found["replay"] = _member(
        PLAIN, consistency={}, replay={"stages": [{"images": 1, "classes": [0]}]}, r1={"every": 2}
    )
    found["consolidation"] = _member(PLAIN, consolidation={"stages": [64], "images": 64, "share": 0.05})
    auxiliary = {**PLAIN, "label_score": "auxiliary"}
    found["auxiliary"] = _member(
        auxiliary,
        held_out={"share": 0.3},
        augmentation="diffaugment",
        feature_matching=1.0,
        penalties=[{"kind": "r2", "every": 2}],
    )
    compared = {**PLAIN, "label_score": "concatenation", "minibatch_kernels": 3}
    clipped = {"name": "adam", "clip_weights": 0.05, "betas": (0.5, 0.9)}
    found["clipped"] = {**_member(compared, loss="wasserstein"), "discriminator_optimizer": clipped}
    styles = NETWORKS.find("stylegan2").tiny().model_dump()
    ada = {"kind": "ada", "images": 400, "interval": 1, "target": 0.0}
    found["stylegan2"] = _member(styles, path_length={"every": 2}, augmentation=ada)
    networks = {member["network"].kind for member in found.values()}
    losses = {member["objective"].get("loss", LOSSES.default) for member in found.values()}
    found |= {name: _member(PLAIN, loss=name) for name in LOSSES.names() if name not in losses}
    others = [name for name in NETWORKS.names() if name not in networks]
    return found | {name: _member(NETWORKS.find(name).tiny().model_dump()) for name in others}


def _member(network: dict[str, Any], **objective: Any) -> dict[str, Any]:
    built: NetworkConfig = NETWORKS.make(network.get("kind", NETWORKS.default), **network)
    few = {"sampling": {"statistics": 64}} if built.norms[0] == "batch" else {}
    return {"latent": 4, "network": built, "objective": objective, **few}
