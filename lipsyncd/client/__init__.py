"""Talk to a daemon from a Python program: over HTTP, or through its storage folder on the same machine.

client        `Client`, and the jobs and results that it gives
asynchronous  the same names for asyncio
facts         what is known of a job, whichever way it was asked for
over_http     one way: the REST service, with the standard library alone
over_storage  the other: the inbox, the ledger's view and the control folder
"""
