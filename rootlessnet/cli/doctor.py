"""rootlessnet doctor: check this machine; each failing check names the command that mends it."""

from __future__ import annotations

import os

from rootlessnet.cli import arguments, doctor_containers
from rootlessnet.cli.finding import ERROR, OK, WARNING, Finding
from rootlessnet.errors import Error, hint, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPTIONS = (*arguments.COMMON, arguments.JSON)
WHAT = "Check what this machine has to offer; exit 1 when something essential is missing."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "doctor [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    if "json" in values:
        import json

        print(
            json.dumps(
                [
                    {"check": f.name, "level": f.level, "text": f.text, "mend": f.mend or None}
                    for f in findings
                ],
                indent=2,
            )
        )
    else:
        for finding in findings:
            print(f"{finding.level:<8} {finding.name:<20} {finding.text}")
            if finding.mend:
                print(f"{'':<8} {'':<20} mend it: {finding.mend}")
    return 1 if any(finding.level == ERROR for finding in findings) else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that fails itself is a finding too."""
    try:
        yield from check()
    except (Error, OSError, KeyError) as error:
        name = check.__name__.lstrip("_").replace("_", " ")
        yield Finding(name, ERROR, reason(error), hint(error))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _runtime_dir() -> Iterator[Finding]:
    from rootlessnet.instance import paths

    yield Finding("runtime directory", OK, paths.base_directory())


def _user_namespaces() -> Iterator[Finding]:
    from rootlessnet.instance import holder
    from rootlessnet.kernel import idmap, libc

    name = "user namespaces"
    if not holder.needs_user_namespace():
        yield Finding(name, OK, "not needed: we have CAP_SYS_ADMIN already")
        return
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            os.close(go[1])
            libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    # --- parent ---
    os.close(ready[1])
    os.close(go[0])
    try:
        made = bool(os.read(ready[0], 1))
        warning = idmap.apply(pid) if made else ""
    finally:
        os.close(ready[0])
        os.close(go[1])
        os.waitpid(pid, 0)
    if made:
        yield Finding(name, OK, "can be made")
        yield from _subordinate_ids(warning)
        return
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        mend = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    elif _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        mend = "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    else:
        mend = "sudo sysctl -w user.max_user_namespaces=15000"
    yield Finding(name, ERROR, "the kernel does not let us make one", mend)


def _subordinate_ids(warning: str) -> Iterator[Finding]:
    from rootlessnet.kernel import idmap, spawn

    name = "subordinate ids"
    uids, gids = idmap.caller_maps()
    have = min(sum(line[2] for line in uids), sum(line[2] for line in gids)) - 1
    if not warning:
        yield Finding(name, OK, f"{have} of them")
        return
    if spawn.find("newuidmap") is None or spawn.find("newgidmap") is None:
        mend = "sudo apt install uidmap"
    else:
        import getpass

        user = getpass.getuser()
        mend = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    yield Finding(name, WARNING, f"{warning}", mend)


def _tun_device() -> Iterator[Finding]:
    name, path = "tun device", "/dev/net/tun"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        yield Finding(name, ERROR, f"{path} is missing", "sudo modprobe tun")
    except PermissionError:
        yield Finding(name, ERROR, f"{path} may not be opened", f"sudo chmod 0666 {path}")
    except OSError as error:
        yield Finding(name, ERROR, f"{path}: {error.strerror}", "sudo modprobe tun")
    else:
        yield Finding(name, OK, path)


def _driver() -> Iterator[Finding]:
    from rootlessnet.drivers import choice
    from rootlessnet.instance import request, settings

    chosen = settings.resolve(request.Requested())
    driver = choice.get(chosen.driver)
    features = driver.Probe(chosen.program).finish(5)
    missing = sorted(name for name in driver.ESSENTIAL if name not in features.flags)
    text = f"{features.path}, version {features.version}"
    if missing:
        yield Finding(driver.NAME, WARNING, f"{text}, without {' '.join(missing)}", driver.INSTALL)
    else:
        yield Finding(driver.NAME, OK, text)


def _resolver() -> Iterator[Finding]:
    from rootlessnet.instance import resolvconf

    servers = resolvconf.host_content().nameservers
    if servers:
        yield Finding("name servers", OK, " ".join(servers))
    else:
        yield Finding(
            "name servers",
            WARNING,
            "/etc/resolv.conf names none: names will not be resolved inside",
            "rootlessnet enter -o dns_fallback=true",
        )


def _systemd() -> Iterator[Finding]:
    from rootlessnet.systemd import scope

    name = "systemd user bus"
    if not scope.wanted():
        yield Finding(name, OK, "systemd does not run this machine: no scope is needed")
        return
    mover = scope.Mover("rootless-netns-doctor")
    problem = mover.probe()
    if problem:
        yield Finding(
            name,
            WARNING,
            f"{problem}: the network may end with the unit that started it",
            "sudo apt install dbus-user-session, and log in again",
        )
    else:
        yield Finding(name, OK, "answers")


def _lingering() -> Iterator[Finding]:
    from rootlessnet.systemd import scope

    if not scope.wanted() or os.geteuid() == 0:
        return
    import getpass

    user = getpass.getuser()
    if os.path.exists(f"/var/lib/systemd/linger/{user}"):
        yield Finding("lingering", OK, "user services outlive the last logout")
    else:
        yield Finding(
            "lingering",
            WARNING,
            "the instance ends with the last logout",
            f"loginctl enable-linger {user}",
        )


def _leftovers() -> Iterator[Finding]:
    from rootlessnet.instance import state, view

    for instance in view.all_instances():
        record = state.read(instance)
        supervisor = record["supervisor"] if record else None
        if supervisor and state.is_alive(supervisor["pid"], supervisor["started"]):
            continue
        where = f"rootlessnet --static-dir {instance.static_dir} status" if record else ""
        yield Finding(
            "leftovers",
            WARNING,
            f"{instance.name} has lost its supervisor",
            where or f"rm -r {instance.directory}",
        )


CHECKS = (
    _runtime_dir,
    _user_namespaces,
    _tun_device,
    _driver,
    _resolver,
    *doctor_containers.CHECKS,
    _systemd,
    _lingering,
    _leftovers,
)
