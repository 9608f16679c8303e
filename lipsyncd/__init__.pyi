"""The types of what `import lipsyncd` offers; `__init__.py` loads each name when it is first used."""

from lipsyncd import errors as errors
from lipsyncd.client.asynchronous import AsyncClient as AsyncClient
from lipsyncd.client.client import Client as Client
from lipsyncd.client.client import Job as Job
from lipsyncd.client.client import Result as Result
from lipsyncd.client.facts import Event as Event
from lipsyncd.results.video_file import Video as Video
from lipsyncd.standalone.python import Check as Check
from lipsyncd.standalone.python import check as check
from lipsyncd.standalone.python import frames as frames
from lipsyncd.standalone.python import render as render
from lipsyncd.standalone.session import Progress as Progress

__version__: str
