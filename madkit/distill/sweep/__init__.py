"""Many runs: what a sweep is made of, how many fit the machine, and the processes that train them."""
