"""Clients that are browsers: which pages may use this server, and sign-ins with a cookie in place of a key.

own_names  the names and origins of this server, against DNS rebinding and requests from other pages
sessions   the sign-ins
tries      how often keys may be tried
"""
