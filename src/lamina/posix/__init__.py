"""What any Unix has, and for what only Linux has a way to do without it.

Whatever is not a mount, a container or the service imports from here and not from ``lamina.linux``,
so that it also runs elsewhere.  ``sys.platform`` decides, when something is called.
"""
