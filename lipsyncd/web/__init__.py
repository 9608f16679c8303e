"""The REST service: the endpoints of the original service and D-ID's Talks API, inside the daemon.

    server    the thread, its sockets, the routes
    wire      connections: what is no HTTP, and who never gets to the point
    doors     who may come in: keys, Host, Origin
    replies   one shape for every error
    desk      the way to the inbox and the ledger's view; nothing else reaches them
    orders    what clients ask for, read leniently
    forms     multipart bodies to disk, counted
    counter   what the routes do alike
    reading   the ledger's view, for several threads
    turns     one thread that answers many at a time
    stock     uploads, checked fully before they are accepted
    files     videos and uploads, with ranges
    voices    what text is spoken with
    original, talks, manners    the routes

A request never waits for a render and never writes the ledger: a new job is a manifest in the inbox, a deletion a
control file, an answer a row of the ledger's view.
"""
