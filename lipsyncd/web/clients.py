"""Who sent a request, and what is theirs.

A tenant is a client with jobs and uploads of its own: the user of `user:password`, or the start of the digest of a key
of one word. With several keys, each sees its own and no other's: for another client's job or upload it gets the answer
that it would get if there were none. An administrator's key sees all of them and the jobs of the folder. So does every
client of a server that has one key, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from lipsyncd.jobs.did_talk import OWNER
from lipsyncd.storage.uploads import Upload

CLIENT = "lipsyncd.client"


@dataclass(frozen=True)
class Client:
    """The sender of one request.

    tenant   the name under which its jobs and uploads are kept; "" without a key
    owner    its name in D-ID's answers
    is_all   it sees the jobs and uploads of all tenants, and those of the folder
    tenants  how many tenants share this server
    has_key  it has sent a valid key or the cookie of a sign-in, or the server needs none
    session  the id of its sign-in; "" without a cookie
    """

    tenant: str = ""
    owner: str = OWNER
    is_all: bool = False
    tenants: int = 1
    has_key: bool = False
    session: str = ""

    def sees(self, tenant: str | None) -> bool:
        """May it see a job or an upload of that tenant? None is the tenant of the folder and of older versions."""
        return self.is_all or (bool(tenant) and tenant == self.tenant)

    @property
    def only(self) -> str | None:
        """The one tenant whose jobs it sees; None when it sees all."""
        return None if self.is_all else self.tenant

    def owns(self, upload: Upload | None) -> bool:
        return upload is not None and self.sees(upload.tenant)


UNLIMITED = Client(is_all=True, has_key=True)  # each client of a server without a key
STRANGER = Client()  # without a key, on a server that has some


def client_of(request: web.Request) -> Client:
    """The sender of a request that has passed `Access`."""
    found: Client = request[CLIENT]
    return found
