"""Programs (jaxprs) of users' loss functions: all that looks into them."""
