"""What network policies let through, decided as Kubernetes does.

A pod that no policy of a direction selects is open in that direction; one that some select may do what any of
them allows. A connection needs both its ends to agree. After the API reference of
networking.k8s.io/v1 NetworkPolicy: peers, ports and IP blocks; no port ranges, no named ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]
NAMESPACE = "sfumato"


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod by its labels, or an address outside the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str | None = None


def allows(policies: Sequence[Policy], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `port` of `target`, by the policies of our namespace."""
    return all(
        _passes(policies, here, other, direction, (port, protocol))
        for here, other, direction in ((source, target, "Egress"), (target, source, "Ingress"))
        if here.address is None and here.namespace == NAMESPACE
    )


def _passes(policies: Sequence[Policy], here: End, other: End, direction: str, port: tuple[int, str]) -> bool:
    binding = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], here.labels)
    ]
    rules = [rule for spec in binding for rule in spec.get(direction.lower(), [])]
    side = "from" if direction == "Ingress" else "to"
    return not binding or any(_rule_allows(rule, side, other, port) for rule in rules)


def _rule_allows(rule: Mapping[str, Any], side: str, other: End, port: tuple[int, str]) -> bool:
    peers, ports = rule.get(side), rule.get("ports")
    known = not ports or any((p["port"], p.get("protocol", "TCP")) == port for p in ports)
    return known and (not peers or any(_is_peer(peer, other) for peer in peers))


def _is_peer(peer: Mapping[str, Any], other: End) -> bool:
    if "ipBlock" in peer:
        return other.address is not None and _in_block(peer["ipBlock"], other.address)
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": other.namespace}
        if not selects(peer["namespaceSelector"], named):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    found = ipaddress.ip_address(address)
    inside = found in ipaddress.ip_network(block["cidr"])
    return inside and not any(found in ipaddress.ip_network(out) for out in block.get("except", []))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of which the empty one selects everything, takes these labels."""
    exact = selector.get("matchLabels", {})
    return exact.items() <= labels.items() and all(
        _expression(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values", [])
    decisions = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return decisions[operator]
