"""Makes certificates and tokens for development, one folder for each host.

Example: python -m experiments.certificates --out=keys --hosts=cloud.lan,10.0.0.7
"""

import sys

from absl import app, flags

from splitjax.runtime.certificates import make_certificates
from splitjax.runtime.credentials import CredentialError

OUT = flags.DEFINE_string("out", None, "the folder to make", required=True)
HOSTS = flags.DEFINE_list(
    "hosts",
    ["localhost", "127.0.0.1"],
    "names and IP addresses by which edges reach the cloud",
)
EDGES = flags.DEFINE_integer("edges", 1, "how many edges", lower_bound=1)
DAYS = flags.DEFINE_float("days", 30, "how long the certificates hold")


def main(_: list[str]) -> None:
    """Makes them, and prints what goes to which host."""
    try:
        folder = make_certificates(
            OUT.value, hosts=HOSTS.value, edges=EDGES.value, days=DAYS.value
        )
    except (CredentialError, OSError) as error:
        raise SystemExit(f"no certificates were made: {error}") from error
    lines = [
        f"Valid days: {DAYS.value:g}; hosts of the cloud: {', '.join(HOSTS.value)}"
    ]
    places = ["cloud", *(f"edge_{slot}" for slot in range(EDGES.value)), "authority"]
    for place in places:
        names = ", ".join(sorted(path.name for path in (folder / place).iterdir()))
        goal = f"copy to the host of {place.replace('_', ' ')}"
        if place == "cloud":
            goal = "copy to the cloud's host"
        if place == "authority":
            goal = "copy nowhere: ca.key can make a certificate for any edge"
        lines.append(f"  {folder / place}: {goal} ({names})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
