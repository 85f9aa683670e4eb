data "aws_availability_zones" "available" {
  state = "available"
}

locals {
  zones = slice(data.aws_availability_zones.available.names, 0, 3)
}

module "vpc" {
  source  = "terraform-aws-modules/vpc/aws"
  version = "~> 6.0"

  name = var.name
  cidr = "10.20.0.0/16"
  azs  = local.zones

  private_subnets  = [for i in range(3) : cidrsubnet("10.20.0.0/16", 3, i)]
  public_subnets   = [for i in range(3) : cidrsubnet("10.20.0.0/16", 8, 128 + i)]
  database_subnets = [for i in range(3) : cidrsubnet("10.20.0.0/16", 8, 144 + i)]

  enable_nat_gateway   = true
  single_nat_gateway   = true
  enable_dns_hostnames = true
}

# Images are read from the bucket by many nodes at once: not through the NAT gateway, which bills each byte.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = module.vpc.vpc_id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = module.vpc.private_route_table_ids
}
