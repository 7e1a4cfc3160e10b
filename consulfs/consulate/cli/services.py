"""`consulate register`, `deregister` and `services`: the services of the agent that answers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from consulfs.consulate.cli import terminal
from consulfs.consulate.client import Consul
from consulfs.consulate.models import duration


def add_commands(commands: Any) -> None:
    register = commands.add_parser("register", help="register a service with this agent")
    register.add_argument("name", help="the service's name")
    register.add_argument("-a", "--address", help="its address [the agent's]")
    register.add_argument("-p", "--port", type=int, help="its port")
    register.add_argument("-s", "--service-id", help="its ID [the name]")
    register.add_argument("-t", "--tags", default="", help="its tags, separated by commas")
    register.set_defaults(run=_register, check=None, httpcheck=None, interval=None, ttl=None)
    kinds = register.add_subparsers(title="how Consul checks it", dest="kind")
    check = kinds.add_parser("check", help="by a script")
    check.add_argument("interval", type=duration, help="how often: seconds, or a duration such as 1m")
    check.add_argument("check", metavar="path", help="the script, which Consul runs")
    httpcheck = kinds.add_parser("httpcheck", help="by an HTTP request")
    httpcheck.add_argument("interval", type=duration, help="how often: seconds, or a duration such as 1m")
    httpcheck.add_argument("httpcheck", metavar="url", help="what Consul asks for")
    kinds.add_parser("no-check", help="not at all")
    ttl = kinds.add_parser("ttl", help="by word from the service itself")
    ttl.add_argument("ttl", type=duration, metavar="duration", help="how long a word holds: seconds, or such as 1m")

    deregister = commands.add_parser("deregister", help="take a service from this agent")
    deregister.add_argument("service_id", help="the service's ID")
    deregister.set_defaults(run=_deregister)

    services = commands.add_parser("services", help="print the services of this agent as JSON")
    services.add_argument("-i", "--indent", type=int, help="spaces a level; without it all is on one line")
    services.set_defaults(run=_services)


def _register(consul: Consul, arguments: argparse.Namespace) -> int:
    tags = [tag for tag in arguments.tags.split(",") if tag] or None
    consul.agent.service.register(
        arguments.name,
        arguments.service_id,
        arguments.address,
        arguments.port,
        tags,
        arguments.check,
        arguments.interval,
        arguments.ttl,
        arguments.httpcheck,
    )
    return 0


def _deregister(consul: Consul, arguments: argparse.Namespace) -> int:
    consul.agent.service.deregister(arguments.service_id)
    return 0


def _services(consul: Consul, arguments: argparse.Namespace) -> int:
    found = consul.agent.services()
    text = json.dumps(found, sort_keys=True, indent=arguments.indent, separators=(",", ": "))
    terminal.line(text.encode())
    return 0
