"""The REST service inside the daemon: the endpoints of the original service and D-ID's Talks API.

    server         the thread, its sockets, the routes
    connection     one connection: requests that are no HTTP, clients that never send one
    connections    accepts connections, and closes one when there are too many
    access         who may use the server: keys, sign-ins, Host, Origin
    browsers/      sign-ins of browsers, and which pages may use this server
    keys           which keys are configured
    clients        who sent a request, and what is theirs
    links          addresses that open without a key
    replies        JSON answers, and one form for every error
    jobs           submits jobs and reads them; only this module uses the inbox and the ledger's view
    orders         one job that a client requests
    quotas         what one tenant may use of what all share
    forms          multipart bodies are written to disk, every byte counted
    requests       what several routes have in common
    ledger_reader  the ledger's view, for several threads
    uploads        uploads, fully checked before they are accepted
    views/         what is shown of jobs: all that is known of one, pages of the list, places in the queue, streams
    routes/        the routes and their requests
    page/          the page for browsers: HTML, CSS, JavaScript

No request waits for a render or writes the ledger: a new job is a manifest in the inbox, a deletion a control file, an
answer a row of the ledger's view.
"""
