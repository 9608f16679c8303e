"""Renders on all machines of a Ray cluster; `ray` is imported only where `executor.kind` is "ray".

Ray places renders on GPUs and reports lost processes. Queue, attempts, checks and publishing stay the daemon's.

    auth_token  the cluster's token, in a file that only its user reads
    connection  connect to Ray as the settings say
    share       the shared folder: inputs of one attempt on their way out, its video on the way back
    on_node     what runs on a machine of the cluster: the actor that owns a render child, and the probe
    ray_child   the executor of one slot, which works on that actor
    slots       the slots of the cluster as machines come and go
"""
