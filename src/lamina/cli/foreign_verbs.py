"""Verbs of docker, podman and skopeo that there are not, and what does the same here."""

from __future__ import annotations

from typing import Final

FOREIGN_VERBS: Final = {
    "attach": "`lamina logs -f NAME` shows what a container writes, `lamina exec -it` enters it",
    "build": "images are built elsewhere (buildah, docker); `lamina convert` makes them lazy",
    "commit": "images are built elsewhere; STORE/containers/NAME/upper is what was written",
    "compose": "containerd, with `lamina snapshotter`, has what composes containers",
    "container": "its verbs are here: `lamina run`, `ps`, `exec`, `logs`, `stop`, `wait`, `rm`",
    "cp": "`lamina cat IMAGE PATH` prints a file, `lamina unpack` writes all of an image",
    "create": "`lamina run` makes a container and runs it",
    "delete": "`lamina rm` removes an image from this node, a registry by its own means",
    "diff": "`lamina check A B` compares two images or folders",
    "events": "`lamina wait NAME` waits for an end; the runtime has events, as `runc events`",
    "history": "`lamina inspect --json IMAGE` has configuration and layers",
    "image": "`lamina images`, `lamina rm`, `lamina pull` and `lamina inspect` do that",
    "import": "`lamina convert` makes an image of an OCI or docker archive",
    "info": "`lamina self-test` tells of this machine, `lamina service status` of the mounts",
    "list-tags": "`skopeo list-tags` does that",
    "load": "`lamina convert docker-archive:FILE DST` reads what `docker save` wrote",
    "logout": "`docker logout` or `skopeo logout`: their credentials are used",
    "login": "`docker login` or `skopeo login`: their credentials are used; or --creds",
    "manifest": "`lamina inspect --raw` prints one, `lamina copy --all` copies all platforms",
    "network": "it is the host's, or none; containerd has others, with `lamina snapshotter`",
    "pause": "`runc --root /run/lamina/runtime pause NAME` does that",
    "port": "the network is the host's, so a container's ports are this machine's",
    "prune": "`lamina gc` removes what nothing uses",
    "push": "`lamina copy SRC docker://HOST/NAME:TAG` pushes, `lamina convert` does as it converts",
    "rename": "a container keeps the name that `lamina run --name` gave it",
    "restart": "`lamina stop`, then `lamina run` anew; a unit of systemd does that by itself",
    "rmi": "`lamina rm IMAGE` removes an image from this node",
    "save": "`lamina copy IMAGE oci-archive:FILE` writes an image into a tar",
    "search": "a registry is searched by its own means",
    "start": "`lamina run` starts containers anew each time",
    "stats": "`runc --root /run/lamina/runtime events --stats NAME` does that",
    "sync": "`lamina copy --all SRC DST` copies one image; loop over the names",
    "system": "`lamina gc` removes what nothing uses, `lamina self-test` tells of the machine",
    "tag": "`lamina copy SRC DST` gives an image another name, without moving its data",
    "top": "`lamina exec NAME ps` lists what runs in a container, `lamina mounts` who serves what",
    "unpause": "`runc --root /run/lamina/runtime resume NAME` does that",
    "update": "`runc --root /run/lamina/runtime update` changes limits",
    "volume": "`lamina run -v HOST:PATH` binds folders; there are no named volumes",
}
"""What the hint says."""
