"""How long it takes to get in: into what runs already, from nothing, and 100 at once."""

from __future__ import annotations

import time

from benchlib.contenders import PYTHON, ROOTLESSKIT, Podman, Rootlessnet, need
from benchlib.measure import Check, Group, Row, ratio, rounds, timed

RUNS = 30
AT_ONCE = 100


def measure(runs: int) -> Group:
    need("rootlesskit")
    net, podman = Rootlessnet(), Podman()
    enter, unshare = net.enter("true"), podman.enter("true")

    def cold() -> dict[str, float]:
        began = time.perf_counter()
        returned = timed(enter)
        net.wait_until_down()
        return {"returned": returned, "ended": (time.perf_counter() - began) * 1000}

    def podman_cold() -> dict[str, float]:
        podman.clean()
        return {"podman": timed(unshare)}

    def crowd_cold() -> dict[str, float]:
        milliseconds = timed(enter, AT_ONCE)
        net.wait_until_down()
        return {"cold": milliseconds}

    def crowd_warm() -> dict[str, float]:
        with net.held():
            return {"enter": timed(enter, AT_ONCE)}

    with net.held():
        warm = rounds(
            runs,
            lambda: {"python": timed(PYTHON)},
            lambda: {"enter": timed(enter)},
            lambda: {"podman": timed(unshare)},
        )
    cold_rounds = rounds(
        max(1, runs // 2), cold, podman_cold, lambda: {"rootlesskit": timed([*ROOTLESSKIT, "true"])}
    )
    timed(unshare)
    crowd = rounds(
        max(1, runs // 5),
        crowd_cold,
        crowd_warm,
        lambda: {"podman": timed(unshare, AT_ONCE)},
        lambda: {"python": timed(PYTHON, AT_ONCE)},
        warm_up=False,
    )
    podman.clean()

    group = Group("start")
    for text, series, key in (
        ("warm  python3 -I -S -c pass", warm, "python"),
        ("warm  rootlessnet enter -- true", warm, "enter"),
        ("warm  podman unshare --rootless-netns true", warm, "podman"),
        ("cold  rootlessnet enter -- true, to torn down", cold_rounds, "ended"),
        ("cold    of which until it returns", cold_rounds, "returned"),
        ("cold  podman unshare, never torn down", cold_rounds, "podman"),
        ("cold  rootlesskit --net=slirp4netns true", cold_rounds, "rootlesskit"),
        (f"{AT_ONCE}   first rootlessnet enters at once", crowd, "cold"),
        (f"{AT_ONCE}   warm rootlessnet enters at once", crowd, "enter"),
        (f"{AT_ONCE}   warm podman unshare at once", crowd, "podman"),
        (f"{AT_ONCE}   python3 -I -S -c pass at once", crowd, "python"),
    ):
        group.rows.append(Row(text, "ms", series[key]))
    group.checks += [
        Check("warm enter : bare python", ratio(warm["enter"], warm["python"]), True, 2.0),
        Check("warm enter : podman", ratio(warm["enter"], warm["podman"]), True, 0.4),
        Check(
            "cold enter, to torn down : podman",
            ratio(cold_rounds["ended"], cold_rounds["podman"]),
            True,
            1.0,
        ),
    ]
    return group
