"""What an instance is made with: options of the command line over containers.conf over defaults."""

from __future__ import annotations

from rootlessnet.config import containers, toml
from rootlessnet.drivers import options as driver_options
from rootlessnet.drivers import slirp4netns
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.drivers.options import Options
    from rootlessnet.instance.request import Requested


class Settings:
    """What counts, all checked."""

    def __init__(self, program: str, options: Options, linger: float, timeout: float) -> None:
        self.driver = slirp4netns.NAME
        self.program = program
        self.options = options
        self.linger = linger
        self.timeout = timeout


def resolve(requested: Requested) -> Settings:
    """Check everything that can be checked before an instance is made. Raises Error."""
    if requested.driver not in ("", slirp4netns.NAME):
        raise Error(f"--driver {requested.driver}: unknown driver", hint="--driver slirp4netns")
    files = containers.conf_files()
    options = driver_options.defaults()
    configured, source = toml.last_strings(files, "engine", "network_cmd_options")
    options.update(driver_options.parse(configured, f"{source}: network_cmd_options"))
    options.update(driver_options.parse(requested.options))
    if options["outbound_addr6"] and not options["enable_ipv6"]:
        raise Error("-o outbound_addr6: enable_ipv6=true is required for outbound_addr6")
    program = slirp4netns.find(toml.last_string(files, "engine", "network_cmd_path")[0])
    return Settings(program, options, requested.linger or 0.0, requested.timeout)


def from_record(record: dict[str, Any]) -> Settings:
    """The settings of an instance that runs, out of its state.json. Raises Error."""
    try:
        driver = record["driver"]
        options = driver_options.defaults()
        options.update({key: driver["options"][key] for key in options if key in driver["options"]})
        return Settings(
            str(driver["program"]), options, float(record["linger"]), float(record["timeout"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Error(
            f"read the state of {record.get('name')}: {error} is missing or wrong",
            hint="rootlessnet down --force ends what is inside",
        ) from None


def refuse_difference(requested: Requested, state: dict[str, Any]) -> None:
    """Raise Error when the running instance was made with something else than is asked for now."""
    running = dict(state["driver"]["options"])
    wanted: dict[str, Any] = dict(driver_options.parse(requested.options))
    names = {key: f"-o {key}" for key in wanted}
    if requested.driver:
        running["driver"], wanted["driver"] = state["driver"]["name"], requested.driver
        names["driver"] = "--driver"
    if requested.linger is not None:
        running["linger"], wanted["linger"] = state["linger"], requested.linger
        names["linger"] = "--linger"
    for key, value in wanted.items():
        if running.get(key) != value:
            now = driver_options.show(running.get(key, ""))
            raise Error(
                f"{names[key]}: {driver_options.show(value)} was asked for, "
                f"but the running instance has {now}",
                hint="leave the option away, or end the instance first: rootlessnet ps shows by "
                "whom it is used",
            )
