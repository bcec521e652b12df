"""What an instance is made with: options of the command line over containers.conf over defaults."""

from __future__ import annotations

from rootlessnet.config import containers, network, toml
from rootlessnet.drivers import choice, pasta
from rootlessnet.drivers import options as driver_options
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.drivers.options import Options
    from rootlessnet.instance.request import Requested


class Settings:
    """What counts, all checked."""

    def __init__(
        self, driver: str, program: str, options: Options, linger: float, timeout: float
    ) -> None:
        self.driver = driver
        self.program = program
        self.options = options
        self.linger = linger
        self.timeout = timeout


def resolve(requested: Requested) -> Settings:
    """Check everything that can be checked before an instance is made. Raises Error."""
    name = choice.choose(requested.driver, *network.default_rootless_network_cmd())
    options = driver_options.defaults()
    options.update(_configured(name))
    options.update(driver_options.parse(requested.options, driver=name))
    if options["outbound_addr6"] and not options["enable_ipv6"]:
        raise Error("-o outbound_addr6: enable_ipv6=true is required for outbound_addr6")
    program = choice.get(name).find(_program(name))
    return Settings(name, program, options, requested.linger or 0.0, requested.timeout)


def _configured(driver: str) -> Options:
    """What containers.conf says of this driver's options."""
    files = containers.conf_files()
    if driver == pasta.NAME:
        words, source = toml.last_strings(files, "network", "pasta_options")
        pairs = pasta.from_own_options(words, f"{source}: pasta_options")
        return driver_options.parse(pairs, f"{source}: pasta_options", driver)
    configured, source = toml.last_strings(files, "engine", "network_cmd_options")
    return driver_options.parse(configured, f"{source}: network_cmd_options", driver)


def _program(driver: str) -> str:
    """Where containers.conf says the program is; empty when it is to be found on PATH."""
    if driver == pasta.NAME:
        # podman's network_cmd_path is for slirp4netns alone.
        return network.find_helper(pasta.NAME)
    return toml.last_string(containers.conf_files(), "engine", "network_cmd_path")[0]


def from_record(record: dict[str, Any]) -> Settings:
    """The settings of an instance that runs, out of its state.json. Raises Error."""
    try:
        driver = record["driver"]
        choice.get(driver["name"])
        options = driver_options.defaults()
        options.update({key: driver["options"][key] for key in options if key in driver["options"]})
        return Settings(
            driver["name"],
            str(driver["program"]),
            options,
            float(record["linger"]),
            float(record["timeout"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Error(
            f"read the state of {record.get('name')}: {error} is missing or wrong",
            hint="rootlessnet down --force ends what is inside",
        ) from None


def refuse_difference(requested: Requested, state: dict[str, Any]) -> None:
    """Raise Error when the running instance was made with something else than is asked for now."""
    running: dict[str, Any] = {"driver": state["driver"]["name"], **state["driver"]["options"]}
    name = choice.choose(requested.driver, running["driver"], "")
    wanted: dict[str, Any] = {"driver": name}
    if name == running["driver"]:
        # Another driver's options need no look: it is refused itself.
        wanted.update(driver_options.parse(requested.options, driver=name))
    names = {key: f"-o {key}" for key in wanted} | {"driver": "--driver"}
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
