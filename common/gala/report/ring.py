"""Draws who gossips with whom: learners on a circle, one arc per directed edge, with what each edge has carried.

Written by hand as SVG: nothing here has axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gala.report import formats
from gala.report.read import Run, integer, number, objects, text

_SEEN = {"live": "live", "open": "live", "closed": "done", "": "unknown", "connecting": "unknown"}
"""What the workers report -> what is drawn; any other state, such as "gone", is drawn as gone."""

MAX_LABELLED_EDGES = 10
MAX_LABELLED_NODES = 24


@dataclass(slots=True)
class Edge:
    """A directed edge as both ends have reported it; counters are the sender's, or the receiver's if there are none."""

    source: int
    target: int
    planned: bool = False
    """In the plan; otherwise opened to heal the topology around a neighbour that was gone."""
    sender_state: str = ""
    receiver_state: str = ""
    sent: float = math.nan
    received: float = math.nan
    bytes: float = math.nan
    replaced: float = math.nan
    refused: float = math.nan

    ended: bool = False
    """One end has finished or stopped in an orderly way: nothing is wrong with an edge that is gone since."""

    @property
    def state(self) -> str:
        """live, done (closed, or ended by a farewell), gone or unknown, as the worse-off end sees it."""
        seen = {_SEEN.get(state, "gone") for state in (self.sender_state, self.receiver_state)}
        state = next((state for state in ("gone", "done", "live") if state in seen), "unknown")
        return "done" if self.ended and state in ("gone", "live") else state

    @property
    def look(self) -> str:
        """The CSS class: the state, or "healed" for a live edge that is not in the plan."""
        return "healed" if self.state == "live" and not self.planned else self.state


def edges(run: Run) -> list[Edge]:
    """The edges of the plan and the live ones of the learners' last records, by source and target."""
    ended = {
        one.rank for one in run.learners if one.events and text(one.events[-1], "event") in ("finished", "stopped")
    }
    found: dict[tuple[int, int], Edge] = {}
    for planned in objects(run.plan, "learners"):
        source = integer(planned, "rank")
        peers = planned.get("outPeers")
        for peer in peers if isinstance(peers, list) else []:
            target = integer({"peer": peer}, "peer")
            if source is not None and target is not None:
                found[source, target] = Edge(source, target, planned=True)
    for learner in run.learners:
        for record in objects(learner.last, "gossip", "edges"):
            peer = integer(record, "peer")
            if peer is None:
                continue
            outgoing = text(record, "direction") == "out"
            key = (learner.rank, peer) if outgoing else (peer, learner.rank)
            edge = found.setdefault(key, Edge(*key))
            if outgoing:
                edge.sender_state, edge.sent = text(record, "state"), number(record, "messages")
            else:
                edge.receiver_state, edge.received = text(record, "state"), number(record, "messages")
            for name in ("bytes", "replaced", "refused"):
                value = number(record, name)
                if outgoing or math.isnan(getattr(edge, name)):
                    setattr(edge, name, value)
    for edge in found.values():
        edge.ended = edge.source in ended or edge.target in ended
    # Others are the past: edges of an earlier plan, or around a gap that has been closed.
    shown = [edge for edge in found.values() if edge.planned or edge.state == "live"]
    return sorted(shown, key=lambda edge: (edge.source, edge.target))


def silent_ranks(run: Run) -> set[int]:
    """Ranks without a train record, or whose last one is more than a minute of wall-clock older than the newest."""
    last = {learner.rank: number(learner.last, "wallSeconds") for learner in run.learners}
    newest = max((wall for wall in last.values() if not math.isnan(wall)), default=0.0)
    return {rank for rank, wall in last.items() if math.isnan(wall) or wall < newest - 60}


def draw(run: Run, identity: str) -> str | None:
    """The topology as an SVG element with the page's CSS classes; None if the run has no learners at all."""
    drawn = edges(run)
    ranks = sorted({rank for edge in drawn for rank in (edge.source, edge.target)} | run.ranks)
    if not ranks:
        return None
    silent = silent_ranks(run) | (set(ranks) - {learner.rank for learner in run.learners})
    many = len(ranks) > MAX_LABELLED_NODES
    labelled = len(drawn) <= MAX_LABELLED_EDGES
    radius, node = 104.0 if labelled else 138.0, 3.5 if many else 17.0 if len(ranks) <= 12 else 11.5
    place = {rank: _on_circle(i, len(ranks), radius) for i, rank in enumerate(ranks)}
    parts = [_arrow_heads(identity)]
    parts += [_edge(edge, place, node, labelled, identity) for edge in drawn]
    for i, rank in enumerate(ranks):
        x, y = place[rank]
        status = "silent" if rank in silent else f"series-{i % 8}" if len(ranks) <= 8 else "thin"
        label = "" if many else f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="middle">{rank}</text>'
        title = f"learner {rank}" + (", silent" if rank in silent else "")
        parts.append(
            f'<g class="node {status}"><title>{title}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{node}"/>{label}</g>'
        )
    label = f"{len(ranks)} learners and {len(drawn)} directed edges"
    return f'<svg class="ring" viewBox="-190 -162 380 324" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _on_circle(index: int, size: int, radius: float) -> tuple[float, float]:
    # Two learners stand side by side, so that the labels of their edges have room above and below.
    angle = 2 * math.pi * index / size - (math.pi if size == 2 else math.pi / 2)
    distance = 0.0 if size == 1 else radius
    return distance * math.cos(angle), distance * math.sin(angle)


def _arrow_heads(identity: str) -> str:
    heads = (
        f'<marker id="{identity}-{state}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" '
        f'orient="auto" class="head {state}"><path d="M0 0L8 4L0 8z"/></marker>'
        for state in ("live", "healed", "done", "gone", "unknown")
    )
    return f"<defs>{''.join(heads)}</defs>"


def _edge(edge: Edge, place: dict[int, tuple[float, float]], node: float, labelled: bool, identity: str) -> str:
    (x1, y1), (x2, y2) = place[edge.source], place[edge.target]
    length = math.hypot(x2 - x1, y2 - y1)
    if length == 0:
        return ""
    # Bent to the left of the way: the clockwise ring becomes a circle, and an edge and its reverse do not overlap.
    bend = 0.22 * length if len(place) > 2 else 0.35 * length
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    control_x, control_y = middle_x + bend * (y2 - y1) / length, middle_y - bend * (x2 - x1) / length
    start = _towards((x1, y1), (control_x, control_y), node + 3)
    stop = _towards((x2, y2), (control_x, control_y), node + 4)
    state = edge.look
    title = f"{edge.source} → {edge.target}: {state}, {_counters(edge)}"
    path = (
        f'<path class="edge {state}" marker-end="url(#{identity}-{state})" '
        f'd="M{start[0]:.1f} {start[1]:.1f}Q{control_x:.1f} {control_y:.1f} {stop[0]:.1f} {stop[1]:.1f}"/>'
    )
    label = ""
    if labelled:
        # The curve's own middle, and from there outwards.
        on_x, on_y = (x1 + 2 * control_x + x2) / 4, (y1 + 2 * control_y + y2) / 4
        distance = math.hypot(on_x, on_y) or 1.0
        if distance < 0.5 * math.hypot(x1, y1) and len(place) > 2:
            return f"<g><title>{title}</title>{path}</g>"  # across the middle, where others cross
        out_x, out_y = on_x / distance, on_y / distance
        anchor = "middle" if abs(out_x) < 0.3 else "start" if out_x > 0 else "end"
        at_x, at_y = on_x + 20 * out_x, on_y + 20 * out_y
        messages = edge.sent if not math.isnan(edge.sent) else edge.received
        lines = (f"{formats.compact(messages)} msgs", formats.size(edge.bytes))
        label = "".join(
            f'<text class="count" x="{at_x:.1f}" y="{at_y + 13 * (i - 0.5):.1f}" dy=".35em" '
            f'text-anchor="{anchor}">{line}</text>'
            for i, line in enumerate(lines)
        )
    return f"<g><title>{title}</title>{path}{label}</g>"


def _towards(start: tuple[float, float], goal: tuple[float, float], distance: float) -> tuple[float, float]:
    length = math.hypot(goal[0] - start[0], goal[1] - start[1]) or 1.0
    share = distance / length
    return start[0] + share * (goal[0] - start[0]), start[1] + share * (goal[1] - start[1])


def _counters(edge: Edge) -> str:
    return (
        f"{formats.count(edge.sent)} messages sent, {formats.count(edge.received)} received, "
        f"{formats.size(edge.bytes)}, {formats.count(edge.replaced)} replaced, {formats.count(edge.refused)} refused"
    )
