"""`python -m xnet_command` is `xnet`."""

from xnet_command import main

main()
